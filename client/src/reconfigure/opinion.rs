//! The second opinion: whether the layout servers, too, find a suspect in trouble.
//!
//! A client that does not reach a server has learnt something of the way there. In a one-way partition each side finds
//! the other at fault, so what leaves a server out is what most of those who decide layouts saw with a probe of their own,
//! made after they were asked; the asker's own trouble has no weight, and neither has silence (H29).

use std::time::Duration;

use futures_util::stream::{FuturesUnordered, StreamExt};
use milonga_wire::{Identity, Kind, Layout, LayoutReply, LayoutRequest, Refusal, Server};

use crate::calls::{Failure, unexpected};
use crate::log::Log;

/// How long a layout server's opinion is waited for, at least: as long as it may wait for two probes, the one under way
/// and the one that counts, and some more.
const WAIT: Duration = Duration::from_millis(5_500);

/// What one layout server has to say.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Opinion {
    /// The suspect answered its probe.
    Well,
    /// It did not, and why.
    Trouble(String),
    /// The layout server said neither, and why.
    Unheard(String),
}

/// What the opinions of all layout servers of a layout come to.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub(crate) enum Verdict {
    /// A majority finds the suspect in trouble.
    Confirmed,
    /// So many find it well that no majority can find otherwise.
    Unfounded,
    /// Too few were heard, or they disagree.
    Undecided,
}

/// What `opinions`, one for each layout server, come to.
pub(crate) fn verdict(opinions: &[Opinion]) -> Verdict {
    let majority = opinions.len() / 2 + 1;
    let trouble = |opinion: &&Opinion| matches!(opinion, Opinion::Trouble(_));
    let (trouble, well) = (
        opinions.iter().filter(trouble).count(),
        opinions.iter().filter(|one| **one == Opinion::Well).count(),
    );
    if trouble >= majority {
        Verdict::Confirmed
    } else if well + majority > opinions.len() {
        Verdict::Unfounded
    } else {
        Verdict::Undecided
    }
}

/// Asks every layout server of `layout` for its opinion on `of`, which `layout` lists as a `kind`. One answer for each, in
/// the layout's order; those that the [`verdict`] no longer needs are not waited for, nor any once another layout is known.
pub(crate) async fn opinions(log: &Log, layout: &Layout, of: &Server, kind: Kind) -> Vec<Opinion> {
    let calls = log.shared.calls.patient(WAIT);
    let request = LayoutRequest::Opinion {
        of: Box::new(of.clone()),
        kind,
    };
    let mut running: FuturesUnordered<_> = layout
        .layout_servers
        .iter()
        .enumerate()
        .map(|(index, server)| {
            let answer = calls.layout(server, layout.term, request.clone());
            async move {
                let answer = answer.await;
                if let Err(Failure::Refused {
                    refusal: Refusal::Decided { newest },
                    ..
                }) = &answer
                {
                    log.shared.layouts.offer(newest);
                }
                (index, heard(server, answer))
            }
        })
        .collect();
    let unheard = Opinion::Unheard("the others had settled it".to_owned());
    let mut opinions = vec![unheard; layout.layout_servers.len()];
    let is_newest = || {
        let known = log.shared.layouts.known();
        known.is_none_or(|known| known.layout.term <= layout.term)
    };
    while verdict(&opinions) == Verdict::Undecided
        && is_newest()
        && let Some((index, opinion)) = running.next().await
    {
        opinions[index] = opinion;
    }
    opinions
}

/// What `server` said.
fn heard(server: &Server, answer: Result<LayoutReply, Failure>) -> Opinion {
    match answer {
        Ok(LayoutReply::Opinion { trouble: None }) => Opinion::Well,
        Ok(LayoutReply::Opinion { trouble: Some(why) }) => Opinion::Trouble(why),
        Ok(_) => Opinion::Unheard(unexpected(server.name.as_str()).to_string()),
        Err(failure) => Opinion::Unheard(failure.to_string()),
    }
}

/// What the layout servers' opinions on `of` come to, and who of them reached it.
pub(crate) async fn asked(
    log: &Log,
    layout: &Layout,
    of: &Server,
    kind: Kind,
) -> (Verdict, Vec<Identity>) {
    let opinions = opinions(log, layout, of, kind).await;
    let verdict = verdict(&opinions);
    tracing::info!(server = %of.name, ?verdict, "a second opinion");
    let said = layout.layout_servers.iter().zip(opinions);
    let reach = said.filter(|(_, opinion)| *opinion == Opinion::Well);
    (verdict, reach.map(|(server, _)| server.identity).collect())
}

#[cfg(test)]
mod tests {
    use milonga_wire::Role;

    use super::*;
    use crate::calls::peer;
    use crate::testing::{Cluster, Fault};

    const WELL: Opinion = Opinion::Well;

    fn trouble() -> Opinion {
        Opinion::Trouble("silent".to_owned())
    }

    fn unheard() -> Opinion {
        Opinion::Unheard("no answer".to_owned())
    }

    /// H29: the majority is one of the layout's servers, not of those who answered.
    #[test]
    fn a_suspicion_is_confirmed_only_by_a_majority_that_found_trouble_itself() {
        use Verdict::{Confirmed, Undecided, Unfounded};
        for (opinions, expected) in [
            (vec![trouble()], Confirmed),
            (vec![WELL], Unfounded),
            (vec![unheard()], Undecided),
            (vec![trouble(), unheard(), unheard()], Undecided),
            (vec![trouble(), unheard(), WELL], Undecided),
            (vec![trouble(), unheard(), trouble()], Confirmed),
            (vec![trouble(), WELL, trouble()], Confirmed),
            (vec![trouble(), WELL, WELL], Unfounded),
            (vec![unheard(), WELL, WELL], Unfounded),
            (vec![unheard(), unheard(), unheard()], Undecided),
            (
                vec![trouble(), trouble(), unheard(), unheard(), WELL],
                Undecided,
            ),
            (
                vec![trouble(), trouble(), trouble(), unheard(), WELL],
                Confirmed,
            ),
        ] {
            assert_eq!(verdict(&opinions), expected, "{opinions:?}");
        }
    }

    /// What the layout servers of `cluster` tell `log` about its first unit.
    async fn on_unit(cluster: &Cluster, log: &Log) -> Vec<Opinion> {
        let layout = cluster.layout();
        opinions(log, &layout, &layout.units[0], Kind::LogUnit).await
    }

    async fn reaches_unit(cluster: &Cluster, log: &Log) -> bool {
        let unit = cluster.layout().units[0].clone();
        let peer = peer(&unit, Kind::LogUnit);
        log.shared.calls.describe(&peer).await.is_ok()
    }

    /// H29; machi, flapping: who sits behind a one-way partition would have everybody behind it left out.
    #[tokio::test(start_paused = true)]
    async fn a_client_that_alone_does_not_reach_a_unit_finds_no_support() {
        let cluster = Cluster::new(1, 2, 1);
        let log = cluster.client(Role::Control);
        cluster.cut(log.caller().name.as_str(), "u-00");
        assert!(!reaches_unit(&cluster, &log).await);

        let opinions = on_unit(&cluster, &log).await;

        assert_eq!(opinions, [WELL]);
        assert_eq!(verdict(&opinions), Verdict::Unfounded);
        assert_eq!(cluster.seen("u-00", "probe"), 1, "it was probed for this");
    }

    /// H29: what counts is the layout server's own way to the suspect, be it cut, or the suspect down or broken.
    #[tokio::test(start_paused = true)]
    async fn a_unit_that_the_layout_servers_do_not_reach_either_is_confirmed() {
        let cluster = Cluster::new(1, 2, 1);
        let log = cluster.client(Role::Control);
        cluster.rule(|to, _| (to == "u-00").then_some(Fault::Down));
        let opinions = on_unit(&cluster, &log).await;
        assert_eq!(verdict(&opinions), Verdict::Confirmed, "{opinions:?}");

        cluster.heal();
        cluster.rule(|to, request| {
            let why = "the cable is out".to_owned();
            let refuse = Fault::Refuse(Refusal::DiskFailed { why });
            (to == "u-00" && request.verb() == "probe").then_some(refuse)
        });
        assert!(reaches_unit(&cluster, &log).await, "as a gray failure does");
        let opinions = on_unit(&cluster, &log).await;
        assert_eq!(verdict(&opinions), Verdict::Confirmed, "{opinions:?}");

        cluster.heal();
        cluster.cut("l-0", "u-00");
        let opinions = on_unit(&cluster, &log).await;
        assert_eq!(verdict(&opinions), Verdict::Confirmed, "{opinions:?}");
        cluster.heal();
        assert_eq!(on_unit(&cluster, &log).await, [WELL]);
    }

    /// H29: neither a layout server that is away nor one that refuses confirms anything, whatever the client saw itself.
    #[tokio::test(start_paused = true)]
    async fn silent_and_refusing_layout_servers_confirm_nothing() {
        let cluster = Cluster::new(1, 2, 1);
        let log = cluster.client(Role::Control);
        let name = log.caller().name.clone();
        cluster.cut(name.as_str(), "u-00");
        cluster.cut(name.as_str(), "l-0");
        let opinions = on_unit(&cluster, &log).await;
        assert!(
            matches!(opinions[..], [Opinion::Unheard(_)]),
            "{opinions:?}"
        );
        assert_eq!(verdict(&opinions), Verdict::Undecided);

        cluster.heal();
        cluster.rule(|to, _| {
            let what = "opinions on suspects".to_owned();
            let busy = Fault::Refuse(Refusal::Busy { what });
            (to == "l-0").then_some(busy)
        });
        let opinions = on_unit(&cluster, &log).await;
        assert!(
            matches!(opinions[..], [Opinion::Unheard(_)]),
            "{opinions:?}"
        );
    }

    /// H29: a restart costs a term, but nobody is left out for it.
    #[tokio::test(start_paused = true)]
    async fn restarted_servers_that_answer_are_well() {
        let cluster = Cluster::new(1, 2, 1);
        let log = cluster.client(Role::Control);
        let layout = cluster.layout();
        cluster.restart_unit("u-00");
        cluster.restart_sequencer("q-0");

        assert_eq!(on_unit(&cluster, &log).await, [WELL]);
        for (sequencer, expected) in [(&layout.sequencer, [WELL]), (&layout.standbys[0], [WELL])] {
            let opinions = opinions(&log, &layout, sequencer, Kind::Sequencer).await;
            assert_eq!(opinions, expected);
        }
    }
}
