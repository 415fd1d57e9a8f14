//! The counter's rules, a sentence each.

use milonga_wire::{
    Acceptance, Chain, Layout, Origin, Rank, Segment, Server, Settings, StreamTail,
};

use super::*;

pub(crate) const CLUSTER: ClusterId = ClusterId([9; 16]);
pub(crate) const INCARNATION: Incarnation = Incarnation(4);

/// The sequencer's name is `s-4` in every test, so that its identity is the one derived from it.
pub(crate) fn identity() -> Identity {
    Identity::of_name(CLUSTER, &"s-4".parse().unwrap())
}

fn server(number: u8) -> Server {
    Server {
        name: format!("s-{number}").parse().unwrap(),
        address: format!("127.0.0.1:{}", 7000 + u16::from(number))
            .parse()
            .unwrap(),
        identity: Identity([number; 16]),
        incarnation: Incarnation(u64::from(number)),
    }
}

/// Layout servers 1 to 3, this sequencer, one chain; the open segment starts at `start`.
pub(crate) fn decided(term: u64, start: u64) -> Decided {
    let segment = |start, end| Segment {
        start: Position(start),
        end,
        stripe_width: 4,
        chains: vec![Chain::new(vec![Identity([10; 16])])],
    };
    let segments = match start {
        0 => vec![segment(0, None)],
        start => vec![segment(0, Some(Position(start))), segment(start, None)],
    };
    let layout = Layout {
        cluster: CLUSTER,
        term: Term(term),
        layout_servers: (1..=3).map(server).collect(),
        sequencer: Server {
            identity: identity(),
            incarnation: INCARNATION,
            ..server(4)
        },
        standbys: vec![],
        units: vec![server(10)],
        segments,
        spares: vec![],
        lost: vec![],
        left: vec![],
        settings: Settings {
            replicas: 1,
            trust_restarted: true,
        },
        origin: Origin::default(),
    };
    let rank = Rank {
        number: 1,
        proposer: [1; 16],
    };
    let acceptances = [1, 2].map(|number| Acceptance {
        server: Identity([number; 16]),
        rank,
    });
    Decided {
        layout,
        acceptances: if term == 0 {
            vec![]
        } else {
            acceptances.to_vec()
        },
    }
}

pub(crate) fn page(decided: Decided, tails: Vec<StreamTail>) -> BootstrapPage {
    BootstrapPage {
        decided,
        complete: true,
        driver: [1; 16],
        page: 0,
        last: true,
        tails,
    }
}

fn counter() -> Counter {
    Counter::new(CLUSTER, identity(), INCARNATION, 100)
}

/// A counter that serves `term` from `start`.
fn serving(term: u64, start: u64) -> Counter {
    let mut counter = counter();
    counter.note_decided(&decided(term, start));
    assert_eq!(
        counter.bootstrap(Term(term), &page(decided(term, start), vec![])),
        Ok(true)
    );
    counter
}

fn stream(number: u8) -> StreamId {
    StreamId([number; 16])
}

fn known(positions: &[u64]) -> Before {
    Before::Known(positions.iter().map(|p| Position(*p)).collect())
}

fn tail(number: u8, last: Before) -> StreamTail {
    StreamTail {
        stream: stream(number),
        last,
    }
}

fn first(counter: &mut Counter, term: u64) -> Result<Position, Refusal> {
    counter.tokens(Term(term), 1, &[]).map(|token| token.first)
}

fn before(counter: &mut Counter, term: u64, number: u8) -> Before {
    let token = counter.tokens(Term(term), 1, &[stream(number)]).unwrap();
    token.streams[0].before.clone()
}

/// Q3; CORFU (NSDI '12), "The CORFU Sequencer".
#[test]
fn positions_follow_one_another_from_the_start_of_the_open_segment() {
    let mut counter = serving(1, 40);

    let run = counter.tokens(Term(1), 3, &[stream(1)]).unwrap();
    let next = counter.tokens(Term(1), 1, &[stream(2), stream(1)]).unwrap();

    assert_eq!((run.first, run.count, run.term), (Position(40), 3, Term(1)));
    assert_eq!(next.first, Position(43));
    let links: Vec<Before> = next.streams.into_iter().map(|link| link.before).collect();
    assert_eq!(links, [known(&[]), known(&[42, 41, 40])]);
}

/// Q3, H6, H8: a process start without a bootstrap issues nothing, and every other term is told from its own by type.
#[test]
fn nothing_is_issued_before_a_bootstrap_or_in_another_term() {
    let mut fresh = counter();
    assert_eq!(
        first(&mut fresh, 0),
        Err(Refusal::NotBootstrapped { term: Term(0) })
    );
    assert_eq!(
        first(&mut fresh, 3),
        Err(Refusal::FutureTerm {
            asked: Term(3),
            current: Term(0)
        })
    );

    let mut serving = serving(5, 0);
    assert!(matches!(
        first(&mut serving, 4),
        Err(Refusal::StaleTerm { asked: Term(4), current: Term(5), newest: Some(newest) })
            if newest.layout.term == Term(5)
    ));
    assert_eq!(
        first(&mut serving, 6),
        Err(Refusal::FutureTerm {
            asked: Term(6),
            current: Term(5)
        })
    );
    assert_eq!(first(&mut serving, 5), Ok(Position(0)));
}

/// Q4: the seal ends the terms below it and says where they stood; its repetition says the same.
#[test]
fn a_seal_ends_lower_terms_and_remembers_the_counter() {
    let mut counter = serving(1, 0);
    counter.tokens(Term(1), 7, &[]).unwrap();

    assert_eq!(counter.seal(Term(2)), Ok(Some(Position(7))));
    assert_eq!(counter.seal(Term(2)), Ok(Some(Position(7))));
    assert_eq!(counter.seal(Term(3)), Ok(Some(Position(7))));

    assert!(matches!(
        first(&mut counter, 1),
        Err(Refusal::StaleTerm { .. })
    ));
    assert_eq!(
        first(&mut counter, 3),
        Err(Refusal::NotBootstrapped { term: Term(3) })
    );
    assert!(matches!(
        counter.seal(Term(2)),
        Err(Refusal::StaleTerm { .. })
    ));
}

/// Q4: the answer to a seal gets lost, the layout is decided, and the seal comes again behind the bootstrap.
#[test]
fn a_late_seal_of_the_term_it_serves_does_not_stop_it() {
    let mut counter = serving(1, 0);
    counter.seal(Term(2)).unwrap();
    counter
        .bootstrap(Term(2), &page(decided(2, 10), vec![]))
        .unwrap();

    assert_eq!(counter.seal(Term(2)), Ok(Some(Position(10))));

    assert_eq!(first(&mut counter, 2), Ok(Position(10)));
}

/// Q4: a driver that was overtaken cannot bring an ended term back.
#[test]
fn a_bootstrap_below_a_seal_is_refused() {
    let mut counter = serving(1, 0);
    counter.seal(Term(2)).unwrap();
    counter.seal(Term(3)).unwrap();

    let late = counter.bootstrap(Term(2), &page(decided(2, 10), vec![]));

    assert!(matches!(late, Err(Refusal::StaleTerm { .. })));
    assert_eq!(counter.standing(), Standing::Sealed);
    assert_eq!(
        counter.bootstrap(Term(3), &page(decided(3, 10), vec![])),
        Ok(true)
    );
}

/// Q6: a hostile or confused seal of the largest term must not leave the counter where no term can ever reach it.
#[test]
fn a_seal_that_skips_terms_is_believed_only_of_what_was_decided() {
    let jump = |current| {
        Err(Refusal::TermJump {
            asked: Term(u64::MAX),
            current: Term(current),
        })
    };
    let mut fresh = counter();
    assert_eq!(fresh.seal(Term(u64::MAX)), jump(0));
    assert_eq!(fresh.seal(Term(1)), Ok(None));

    let mut counter = serving(5, 0);
    assert_eq!(counter.seal(Term(u64::MAX)), jump(5));
    assert_eq!(first(&mut counter, 5), Ok(Position(0)));
    assert!(matches!(
        counter.bootstrap(Term(9), &page(decided(9, 0), vec![])),
        Err(Refusal::TermJump { .. })
    ));

    counter.note_decided(&decided(8, 0));
    assert_eq!(counter.seal(Term(9)), Ok(Some(Position(1))));
    assert_eq!(
        counter.bootstrap(Term(9), &page(decided(9, 1), vec![])),
        Ok(true)
    );
}

/// H2: a sequencer that learns of a later decided layout stops by itself, though no seal reached it.
#[test]
fn a_decided_later_layout_ends_the_term() {
    let mut counter = serving(5, 0);

    counter.note_decided(&decided(7, 0));

    assert!(matches!(
        first(&mut counter, 5),
        Err(Refusal::StaleTerm { newest: Some(newest), .. }) if newest.layout.term == Term(7)
    ));
    counter.note_decided(&decided(6, 0));
    assert_eq!(counter.term(), Term(7));
}

/// Q5, H6: only a layout that names this very process start begins a term.
#[test]
fn a_layout_that_names_another_sequencer_or_process_start_is_refused() {
    let refused = |change: fn(&mut Decided)| {
        let mut decided = decided(0, 0);
        change(&mut decided);
        let mut counter = counter();
        let refusal = counter
            .bootstrap(Term(0), &page(decided, vec![]))
            .unwrap_err();
        assert_eq!(counter.standing(), Standing::Blank);
        refusal
    };
    assert!(matches!(
        refused(|d| d.layout.sequencer.incarnation = Incarnation(3)),
        Refusal::WrongIncarnation { .. }
    ));
    assert!(matches!(
        refused(|d| d.layout.sequencer.identity = Identity([77; 16])),
        Refusal::WrongServer { .. }
    ));
    assert!(matches!(
        refused(|d| d.layout.cluster = ClusterId([8; 16])),
        Refusal::WrongCluster { .. }
    ));
    assert!(matches!(
        refused(|d| d.layout.term = Term(1)),
        Refusal::Malformed { .. }
    ));
    assert!(matches!(
        refused(|d| d.layout.segments.clear()),
        Refusal::Malformed { .. }
    ));
}

/// Q5, H20: a decision is checked against the one before it where that is known.
#[test]
fn a_layout_without_the_acceptances_that_decide_it_is_refused() {
    let mut counter = serving(1, 0);
    let mut unproved = decided(2, 5);
    unproved.acceptances.pop();

    let refusal = counter.bootstrap(Term(2), &page(unproved, vec![]));

    assert!(matches!(refusal, Err(Refusal::Malformed { .. })));
    assert_eq!(first(&mut counter, 1), Ok(Position(0)));
}

/// Q5: pages of one driver add up, whatever order they come in and however often; another driver's do not.
#[test]
fn the_first_driver_whose_pages_are_whole_wins() {
    let mut counter = counter();
    let part = |driver: u8, number, last, tails| BootstrapPage {
        driver: [driver; 16],
        page: number,
        last,
        ..page(decided(0, 0), tails)
    };
    let mut begins = |page| counter.bootstrap(Term(0), &page);

    assert_eq!(begins(part(1, 0, false, vec![])), Ok(false));
    assert_eq!(begins(part(2, 2, true, vec![])), Ok(false));
    assert_eq!(begins(part(2, 0, false, vec![])), Ok(false));
    assert_eq!(begins(part(2, 0, false, vec![])), Ok(false));
    assert_eq!(begins(part(1, 1, false, vec![])), Ok(false));
    assert_eq!(begins(part(2, 1, false, vec![])), Ok(true));

    assert_eq!(first(&mut counter, 0), Ok(Position(0)));
    assert_eq!(
        counter.bootstrap(Term(0), &part(1, 2, true, vec![])),
        Ok(true)
    );
    assert_eq!(first(&mut counter, 0), Ok(Position(1)), "it went on");
}

/// Q5: the tails of two drivers are never mixed, and what half a driver sent is forgotten with its term.
#[test]
fn a_new_term_begins_without_the_pages_of_the_one_before() {
    let mut counter = serving(1, 0);
    let half = BootstrapPage {
        last: false,
        ..page(decided(2, 8), vec![tail(1, known(&[7]))])
    };
    assert_eq!(counter.bootstrap(Term(2), &half), Ok(false));
    assert!(matches!(
        first(&mut counter, 1),
        Err(Refusal::StaleTerm { .. })
    ));

    counter.seal(Term(3)).unwrap();
    counter
        .bootstrap(Term(3), &page(decided(3, 8), vec![]))
        .unwrap();

    assert_eq!(before(&mut counter, 3, 1), known(&[]));
}

#[test]
fn half_received_bootstraps_are_few() {
    let mut counter = counter();
    for driver in 0..200_u8 {
        let half = BootstrapPage {
            driver: [driver; 16],
            last: false,
            ..page(decided(0, 0), vec![])
        };
        counter.bootstrap(Term(0), &half).unwrap();
        assert!(counter.drivers.len() <= DRIVERS_MAX);
    }
    let whole = BootstrapPage {
        driver: [0; 16],
        ..page(decided(0, 0), vec![])
    };
    assert_eq!(
        counter.bootstrap(Term(0), &whole),
        Ok(true),
        "one that was forgotten begins again"
    );
}

/// Drivers that died half way must not push out the one that is at work.
#[test]
fn the_driver_that_was_silent_the_longest_gives_way() {
    let mut counter = counter();
    let part = |driver: u8, number, last| BootstrapPage {
        driver: [driver; 16],
        page: number,
        last,
        ..page(decided(0, 0), vec![])
    };
    for number in 0..9 {
        counter.bootstrap(Term(0), &part(1, number, false)).unwrap();
        let died = part(100 + number as u8, 0, false);
        counter.bootstrap(Term(0), &died).unwrap();
    }
    assert_eq!(counter.bootstrap(Term(0), &part(1, 9, true)), Ok(true));
}

/// Q1, Q5: tails carry over, and what the driver did not know stays unknown (H39).
#[test]
fn streams_go_on_from_their_tails() {
    let mut counter = counter();
    let tails = vec![
        tail(1, known(&[8, 6, 4, 2])),
        tail(2, known(&[3])),
        tail(3, Before::Unknown),
    ];
    counter
        .bootstrap(Term(0), &page(decided(0, 9), tails))
        .unwrap();

    assert_eq!(before(&mut counter, 0, 1), known(&[8, 6, 4, 2]));
    assert_eq!(before(&mut counter, 0, 2), known(&[3]));
    assert_eq!(before(&mut counter, 0, 3), Before::Unknown);
    assert_eq!(before(&mut counter, 0, 4), known(&[]));
    assert_eq!(before(&mut counter, 0, 3), Before::Unknown, "one is not K");
}

/// Q1, H39.
#[test]
fn after_an_incomplete_bootstrap_an_unlisted_stream_is_unknown() {
    let mut counter = counter();
    let incomplete = BootstrapPage {
        complete: false,
        ..page(decided(0, 9), vec![tail(1, known(&[3]))])
    };
    counter.bootstrap(Term(0), &incomplete).unwrap();

    assert_eq!(before(&mut counter, 0, 1), known(&[3]));
    assert_eq!(before(&mut counter, 0, 2), Before::Unknown);
}

/// Q1, Q2: more tails than the table holds make it incomplete.
#[test]
fn tails_beyond_the_table_are_unknown() {
    let mut counter = Counter::new(CLUSTER, identity(), INCARNATION, 2);
    let tails = (1..=3).map(|number| tail(number, known(&[number.into()])));
    counter
        .bootstrap(Term(0), &page(decided(0, 9), tails.collect()))
        .unwrap();

    assert_eq!(counter.streams(), 2);
    assert_eq!(before(&mut counter, 0, 1), Before::Unknown);
}

#[test]
fn tails_that_cannot_be_are_refused() {
    let start = 9;
    let refused = |tails| {
        let mut counter = counter();
        let refusal = counter
            .bootstrap(Term(0), &page(decided(0, start), tails))
            .unwrap_err();
        assert_ne!(counter.standing(), Standing::Serving);
        assert!(matches!(refusal, Refusal::Malformed { .. }), "{refusal}");
    };
    refused(vec![tail(1, known(&[start]))]);
    refused(vec![tail(1, known(&[2, 3]))]);
    refused(vec![tail(1, known(&[5, 4, 3, 2, 1]))]);
    refused(vec![tail(1, known(&[2])), tail(1, known(&[3]))]);
}

#[test]
fn pages_that_contradict_their_driver_are_refused() {
    let part = |number, last| BootstrapPage {
        page: number,
        last,
        ..page(decided(0, 0), vec![])
    };
    let refused = |earlier: &[(u32, bool)], (number, last)| {
        let mut counter = counter();
        for (number, last) in earlier {
            assert_eq!(counter.bootstrap(Term(0), &part(*number, *last)), Ok(false));
        }
        let refusal = counter.bootstrap(Term(0), &part(number, last));
        assert!(matches!(refusal, Err(Refusal::Malformed { .. })));
    };
    refused(&[(2, true)], (3, false));
    refused(&[(2, true)], (1, true));
    refused(&[(2, false)], (1, true));
    refused(&[], (PAGES_MAX, true));
}

#[test]
fn a_request_over_a_bound_is_refused_and_issues_nothing() {
    let mut counter = serving(0, 0);
    let many: Vec<StreamId> = (0..=STREAMS_PER_ENTRY_MAX as u8).map(stream).collect();

    let none = counter.tokens(Term(0), 0, &[]);
    assert!(matches!(none, Err(Refusal::Malformed { .. })));
    let more = counter.tokens(Term(0), RUN_RECORDS_MAX + 1, &[]);
    assert!(matches!(more, Err(Refusal::TooLarge { .. })));
    assert!(matches!(
        counter.tokens(Term(0), 1, &many),
        Err(Refusal::TooLarge { .. })
    ));
    assert!(matches!(
        counter.check_end(Term(0), &many),
        Err(Refusal::TooLarge { .. })
    ));
    assert!(matches!(
        counter.tokens(Term(0), 1, &[stream(1), stream(2), stream(1)]),
        Err(Refusal::Malformed { .. })
    ));
    assert_eq!(first(&mut counter, 0), Ok(Position(0)));
}

/// Q3: at the largest position the counter stops; it does not start again from 0.
#[test]
fn the_counter_does_not_overflow() {
    let mut counter = serving(0, u64::MAX - 2);

    assert!(matches!(
        counter.tokens(Term(0), 3, &[]),
        Err(Refusal::TooLarge { limit: 2, .. })
    ));
    assert!(counter.tokens(Term(0), 2, &[]).is_ok());
    assert!(matches!(
        counter.tokens(Term(0), 1, &[]),
        Err(Refusal::TooLarge { limit: 0, .. })
    ));
}

/// The end is where the next position will be issued, with the streams as the next token would have them.
#[test]
fn the_end_says_what_the_next_token_would() {
    let mut counter = serving(0, 0);
    counter.tokens(Term(0), 6, &[stream(1)]).unwrap();

    let end = counter.end(Term(0), &[stream(2), stream(1)]).unwrap();

    let token = counter.tokens(Term(0), 1, &[stream(2), stream(1)]).unwrap();
    assert_eq!(
        end,
        SequencerReply::End {
            end: token.first,
            term: Term(0),
            streams: token.streams
        }
    );
}

/// H2: what was asked in a term is not answered after it.
#[test]
fn the_end_of_an_ended_term_is_refused() {
    let mut counter = serving(1, 0);
    assert_eq!(counter.check_end(Term(1), &[]), Ok(()));

    counter.seal(Term(2)).unwrap();

    assert!(matches!(
        counter.end(Term(1), &[]),
        Err(Refusal::StaleTerm { .. })
    ));
}
