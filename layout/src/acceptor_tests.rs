//! The acceptor's rules, a sentence each.

use milonga_wire::{
    Acceptance, Chain, Incarnation, Origin, Position, Segment, Server, ServerName, Settings,
};

use super::*;

pub(crate) const CLUSTER: ClusterId = ClusterId([9; 16]);

pub(crate) fn identity(number: u8) -> Identity {
    Identity([number; 16])
}

fn server(number: u8) -> Server {
    let name: ServerName = format!("s-{number}").parse().unwrap();
    Server {
        name,
        address: format!("127.0.0.1:{}", 7000 + u16::from(number))
            .parse()
            .unwrap(),
        identity: identity(number),
        incarnation: Incarnation(u64::from(number)),
    }
}

/// Layout servers 1 to 3; `change` tells layouts of one term apart.
pub(crate) fn layout(term: u64, change: &str) -> Layout {
    Layout {
        cluster: CLUSTER,
        term: Term(term),
        layout_servers: (1..=3).map(server).collect(),
        sequencer: server(4),
        standbys: vec![],
        units: vec![server(10)],
        segments: vec![Segment {
            start: Position::FIRST,
            end: None,
            stripe_width: 4,
            chains: vec![Chain::new(vec![identity(10)])],
        }],
        spares: vec![],
        lost: vec![],
        left: vec![],
        settings: Settings {
            replicas: 1,
            trust_restarted: true,
        },
        origin: Origin {
            change: change.to_owned(),
            ..Origin::default()
        },
    }
}

pub(crate) fn rank(number: u64) -> Rank {
    Rank {
        number,
        proposer: [number as u8; 16],
    }
}

pub(crate) fn decided(layout: Layout) -> Decided {
    let acceptance = |number| Acceptance {
        server: identity(number),
        rank: rank(1),
    };
    let acceptances = match layout.term {
        Term(0) => vec![],
        _ => vec![acceptance(1), acceptance(2)],
    };
    Decided {
        layout,
        acceptances,
    }
}

/// Layout server `number` as it stands after the decision of `terms` terms.
pub(crate) fn acceptor(number: u8, terms: u64) -> Acceptor {
    let history = (0..terms).map(|term| decided(layout(term, "-")));
    Acceptor::recover(CLUSTER, identity(number), history.collect(), None).unwrap()
}

/// Durable at once.
pub(crate) fn does(
    acceptor: &mut Acceptor,
    step: Result<Step, Refusal>,
) -> Result<LayoutReply, Refusal> {
    let step = step?;
    if let Some(change) = step.durable {
        acceptor.apply(change);
    }
    Ok(step.reply)
}

fn prepares(acceptor: &mut Acceptor, term: u64, number: u64) -> Result<LayoutReply, Refusal> {
    let step = acceptor.prepare(Term(term), rank(number));
    does(acceptor, step)
}

fn proposes(acceptor: &mut Acceptor, number: u64, layout: Layout) -> Result<LayoutReply, Refusal> {
    let step = acceptor.propose(layout.term, rank(number), layout);
    does(acceptor, step)
}

fn learns(acceptor: &mut Acceptor, decided: Decided) -> Result<LayoutReply, Refusal> {
    let step = acceptor.learn(decided);
    does(acceptor, step)
}

fn promised(number: u64, accepted: Option<(u64, Layout)>) -> LayoutReply {
    LayoutReply::Promised(Promise {
        rank: rank(number),
        accepted: accepted.map(|(number, layout)| (rank(number), Box::new(layout))),
    })
}

fn outranked(number: u64) -> Refusal {
    Refusal::Outranked {
        promised: rank(number),
    }
}

/// A1; Paxos Made Simple, "Choosing a Value", P1a.
#[test]
fn nothing_below_a_promised_rank_is_promised_or_accepted() {
    let mut acceptor = acceptor(1, 1);
    assert_eq!(prepares(&mut acceptor, 1, 5), Ok(promised(5, None)));

    assert_eq!(prepares(&mut acceptor, 1, 4), Err(outranked(5)));
    assert_eq!(
        proposes(&mut acceptor, 4, layout(1, "a")),
        Err(outranked(5))
    );

    let accepted = LayoutReply::Accepted { rank: rank(7) };
    assert_eq!(proposes(&mut acceptor, 7, layout(1, "b")), Ok(accepted));
    assert_eq!(
        prepares(&mut acceptor, 1, 6),
        Err(outranked(7)),
        "to accept is to promise"
    );
}

/// A2, H21; Paxos Made Simple, "Choosing a Value", P2c.
#[test]
fn what_was_accepted_is_told_to_every_later_proposer() {
    let mut acceptor = acceptor(1, 1);
    proposes(&mut acceptor, 2, layout(1, "a")).unwrap();

    let told = prepares(&mut acceptor, 1, 3);
    let again = prepares(&mut acceptor, 1, 4);

    assert_eq!(told, Ok(promised(3, Some((2, layout(1, "a"))))));
    assert_eq!(again, Ok(promised(4, Some((2, layout(1, "a"))))));
}

/// Answers get lost: whoever repeats itself is told the same, and the disk is left alone.
#[test]
fn a_repeated_prepare_or_propose_changes_nothing() {
    let mut acceptor = acceptor(1, 1);
    prepares(&mut acceptor, 1, 2).unwrap();
    let again = acceptor.prepare(Term(1), rank(2)).unwrap();
    assert_eq!((again.durable, again.reply), (None, promised(2, None)));

    proposes(&mut acceptor, 2, layout(1, "a")).unwrap();
    let again = acceptor.propose(Term(1), rank(2), layout(1, "a")).unwrap();
    assert_eq!(again.durable, None);
}

/// A rank is one proposer's: two layouts at one rank would let two majorities accept different ones.
#[test]
fn one_rank_proposes_one_layout() {
    let mut acceptor = acceptor(1, 1);
    proposes(&mut acceptor, 2, layout(1, "a")).unwrap();

    let other = proposes(&mut acceptor, 2, layout(1, "b"));

    assert!(matches!(other, Err(Refusal::Malformed { .. })));
    assert_eq!(
        prepares(&mut acceptor, 1, 3),
        Ok(promised(3, Some((2, layout(1, "a")))))
    );
}

/// A3: a blank server, one that was left out, and one that is behind have no vote.
#[test]
fn only_a_server_that_the_layout_before_names_votes() {
    assert_eq!(
        prepares(&mut Acceptor::new(CLUSTER, identity(1)), 1, 1),
        Err(Refusal::NotListed)
    );
    assert_eq!(prepares(&mut acceptor(7, 1), 1, 1), Err(Refusal::NotListed));
    assert_eq!(
        proposes(&mut acceptor(7, 1), 1, layout(1, "a")),
        Err(Refusal::NotListed)
    );
    assert_eq!(acceptor(7, 1).confirm(Term(0)), Err(Refusal::NotListed));
    let behind = Refusal::Behind {
        newest: Some(Term(0)),
    };
    assert_eq!(prepares(&mut acceptor(1, 1), 2, 1), Err(behind));
}

/// A3: a server joins by learning the history, and votes from the first term whose predecessor names it.
#[test]
fn a_server_votes_once_a_learnt_layout_names_it() {
    let mut joining = Acceptor::new(CLUSTER, identity(5));
    let mut with_five = layout(1, "5 for 3");
    with_five.layout_servers[2] = server(5);

    assert!(matches!(
        learns(&mut joining, decided(with_five.clone())),
        Err(Refusal::Behind { newest: None })
    ));
    learns(&mut joining, decided(layout(0, "-"))).unwrap();
    assert_eq!(prepares(&mut joining, 1, 1), Err(Refusal::NotListed));
    learns(&mut joining, decided(with_five)).unwrap();

    assert_eq!(prepares(&mut joining, 2, 1), Ok(promised(1, None)));
}

/// H19, H20: who is late to a decided term gets the decision itself.
#[test]
fn a_decided_term_is_not_voted_on_again() {
    let mut acceptor = acceptor(1, 1);
    prepares(&mut acceptor, 1, 9).unwrap();
    let decision = decided(layout(1, "a"));

    assert_eq!(
        learns(&mut acceptor, decision.clone()),
        Ok(LayoutReply::Learned { newest: Term(1) })
    );

    let newest = Box::new(decision);
    let refusal = Refusal::Decided { newest };
    assert_eq!(prepares(&mut acceptor, 1, 10), Err(refusal.clone()));
    assert_eq!(proposes(&mut acceptor, 10, layout(1, "b")), Err(refusal));
    assert_eq!(
        prepares(&mut acceptor, 2, 1),
        Ok(promised(1, None)),
        "the next term begins anew"
    );
}

/// A4: repeated, it is the same; unproved, of a term too far, or contradicting, it is refused.
#[test]
fn a_decision_is_learnt_once_in_order_and_only_with_its_proof() {
    let mut acceptor = acceptor(1, 1);
    let decision = decided(layout(1, "a"));
    let mut unproved = decision.clone();
    unproved.acceptances.pop();
    assert!(matches!(
        learns(&mut acceptor, unproved),
        Err(Refusal::Malformed { .. })
    ));
    let ahead = learns(&mut acceptor, decided(layout(2, "a")));
    let newest = Some(Term(0));
    assert_eq!(ahead, Err(Refusal::Behind { newest }));

    learns(&mut acceptor, decision.clone()).unwrap();
    let mut otherwise_proved = decision;
    otherwise_proved.acceptances[0].server = identity(3);
    let again = acceptor.learn(otherwise_proved).unwrap();
    assert_eq!(again.durable, None);
    assert_eq!(again.reply, LayoutReply::Learned { newest: Term(1) });
    assert!(matches!(
        learns(&mut acceptor, decided(layout(1, "b"))),
        Err(Refusal::Malformed { .. })
    ));
    let mut stuffed = decided(layout(2, "a"));
    stuffed.acceptances = vec![stuffed.acceptances[0].clone(); 6];
    assert!(matches!(
        learns(&mut acceptor, stuffed),
        Err(Refusal::Malformed { .. })
    ));
}

#[test]
fn a_cluster_is_initialised_once() {
    let mut blank = Acceptor::new(CLUSTER, identity(1));
    let first = layout(0, "init");
    let mut elsewhere = first.clone();
    elsewhere.cluster = ClusterId([8; 16]);
    let genesis = |acceptor: &mut Acceptor, layout: Layout| {
        let step = acceptor.genesis(layout);
        does(acceptor, step)
    };

    assert!(matches!(
        genesis(&mut blank, elsewhere),
        Err(Refusal::WrongCluster { .. })
    ));
    assert!(matches!(
        genesis(&mut blank, layout(1, "init")),
        Err(Refusal::Malformed { .. })
    ));
    assert_eq!(
        genesis(&mut Acceptor::new(CLUSTER, identity(7)), first.clone()),
        Err(Refusal::NotListed)
    );
    for _ in 0..2 {
        assert_eq!(
            genesis(&mut blank, first.clone()),
            Ok(LayoutReply::Initialised)
        );
    }
    assert_eq!(
        genesis(&mut blank, layout(0, "other")),
        Err(Refusal::AlreadyInitialised)
    );
    learns(&mut blank, decided(layout(1, "a"))).unwrap();
    assert_eq!(genesis(&mut blank, first), Ok(LayoutReply::Initialised));
}

/// A5, H2: to promise does not end a term, to accept does, decided or not.
#[test]
fn a_term_is_confirmed_until_a_layout_of_the_next_is_accepted() {
    let mut acceptor = acceptor(1, 2);
    let confirmed = Ok(LayoutReply::Confirmed { term: Term(1) });
    assert_eq!(acceptor.confirm(Term(1)), confirmed);
    prepares(&mut acceptor, 2, 1).unwrap();
    assert_eq!(acceptor.confirm(Term(1)), confirmed);

    proposes(&mut acceptor, 1, layout(2, "a")).unwrap();

    assert_eq!(
        acceptor.confirm(Term(1)),
        Err(Refusal::StaleTerm {
            asked: Term(1),
            current: Term(2),
            newest: Some(Box::new(decided(layout(1, "-")))),
        })
    );
    assert!(matches!(
        acceptor.confirm(Term(0)),
        Err(Refusal::Decided { newest }) if newest.layout.term == Term(1)
    ));
    let newest = Some(Term(1));
    assert_eq!(acceptor.confirm(Term(2)), Err(Refusal::Behind { newest }));
    assert_eq!(
        acceptor.confirm(Term(u64::MAX)),
        Err(Refusal::Behind { newest })
    );
    assert_eq!(
        Acceptor::new(CLUSTER, identity(1)).confirm(Term(0)),
        Err(Refusal::NotListed)
    );
}

/// H20: whoever reads the newest layout sees that the next term is half done.
#[test]
fn the_newest_layout_comes_with_the_standing_of_the_next_term() {
    let mut acceptor = acceptor(1, 1);
    prepares(&mut acceptor, 1, 3).unwrap();
    proposes(&mut acceptor, 3, layout(1, "a")).unwrap();
    prepares(&mut acceptor, 1, 4).unwrap();

    let standing = Standing {
        promised: Some(rank(4)),
        accepted: Some(rank(3)),
    };
    let newest = Some(Box::new(decided(layout(0, "-"))));
    assert_eq!(
        acceptor.standing(),
        LayoutReply::Newest {
            decided: newest.clone(),
            standing
        }
    );
    assert_eq!(acceptor.at(Term(0)), LayoutReply::At { decided: newest });
    assert_eq!(
        acceptor.at(Term(1)),
        LayoutReply::At { decided: None },
        "accepted is not decided"
    );
}

/// A layout that no answer could carry would block its term for ever.
#[test]
fn a_layout_too_large_for_an_answer_is_refused() {
    let mut large = layout(1, "a");
    let chain = large.segments[0].chains[0].clone();
    large.segments = (0..4_000)
        .map(|index| Segment {
            start: Position(index),
            end: (index < 3_999).then_some(Position(index + 1)),
            stripe_width: 1,
            chains: vec![
                Chain::new(vec![identity(10), identity(11), identity(12), identity(13)]),
                chain.clone(),
            ],
        })
        .collect();
    large.units = (10..=13).chain(20..=70).map(server).collect();
    for segment in &mut large.segments {
        segment.chains[1].units = (20..=70).map(identity).collect();
    }
    large.validate().unwrap();

    assert!(matches!(
        proposes(&mut acceptor(1, 1), 1, large),
        Err(Refusal::TooLarge { .. })
    ));
}

/// A4: what was stored is believed only as a proved history, and a vote only where the term before is decided.
#[test]
fn a_history_with_a_gap_is_not_recovered() {
    let recover = |terms: &[u64], vote: Option<u64>| {
        let history = terms.iter().map(|term| decided(layout(*term, "-")));
        let vote = vote.map(|term| Vote {
            term: Term(term),
            promised: rank(1),
            accepted: None,
        });
        Acceptor::recover(CLUSTER, identity(1), history.collect(), vote).map(|_| ())
    };
    assert_eq!(recover(&[0, 1], Some(2)), Ok(()));
    assert_eq!(recover(&[0, 1], Some(1)), Ok(()));
    assert!(recover(&[0, 2], None).is_err());
    assert!(recover(&[1], None).is_err());
    assert!(recover(&[0, 1], Some(3)).is_err());
}

/// 3.9: one proposer does not take all numbers that there are.
#[test]
fn a_rank_far_above_all_others_is_refused() {
    let mut acceptor = acceptor(1, 1);
    let refused = prepares(&mut acceptor, 1, u64::MAX);
    assert!(
        matches!(refused, Err(Refusal::Malformed { .. })),
        "{refused:?}"
    );
    assert_eq!(prepares(&mut acceptor, 1, 7), Ok(promised(7, None)));
    assert!(prepares(&mut acceptor, 1, 7 + (1 << 32)).is_ok());
}
