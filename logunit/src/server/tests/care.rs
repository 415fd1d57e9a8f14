//! The unit's shell: resets, scrubbing, and what a unit says that it cannot tell.

use super::*;

/// U12, H14: whoever still means the old unit is refused, and so is what had been admitted for it and waits.
#[tokio::test(start_paused = true)]
async fn a_unit_that_was_reset_is_another_and_answers_nobody_who_means_the_old_one() {
    let node = Node::with(&[Some(1)], 1 << 20).announced().await;
    node.write(0, 0).await.unwrap().0.unwrap();
    let old = node.server.identity();
    let reset = |of| Wanted::Unit(UnitRequest::Reset { of });
    let ask = |head| node.send_as(Role::Control, head, Payload::new());
    let in_use = ask(node.head(0, reset(old))).await.unwrap().0;
    assert_eq!(in_use, Err(Refusal::InUse { term: Term(0) }));
    node.ask(1, UnitRequest::Seal).await.unwrap();
    let early = ask(node.head(0, reset(old))).await.unwrap().0;
    assert!(matches!(early, Err(Refusal::StaleTerm { .. })), "{early:?}");
    let another = ask(node.head(1, reset(Identity([7; 16])))).await.unwrap().0;
    assert!(
        matches!(another, Err(Refusal::WrongServer { .. })),
        "{another:?}"
    );
    for role in [Role::Writer, Role::LogUnit] {
        let refused = node.send_as(role, node.head(1, reset(old)), Payload::new());
        let refused = refused.await.unwrap().0;
        assert!(
            matches!(refused, Err(Refusal::WrongRole { .. })),
            "{refused:?}"
        );
    }

    let stale = node.head(1, Wanted::Unit(UnitRequest::Probe));
    let done = ask(node.head(1, reset(old)));
    let waits = ask(stale.clone());
    let done = unit(done.await.unwrap().0);
    let (identity, incarnation) = (node.server.identity(), node.server.incarnation());
    assert_eq!(
        done,
        Ok(UnitReply::Reset {
            identity,
            incarnation
        })
    );
    assert_ne!(identity, old);
    let spans = vec![Span::one(Position(0))];
    let read = UnitRequest::Read {
        spans,
        bytes_max: 9,
    };
    let late = [
        waits.await.unwrap().0,
        ask(stale).await.unwrap().0,
        ask(RequestHead {
            request: Wanted::Unit(read),
            ..node.head(0, Wanted::Describe)
        })
        .await
        .unwrap()
        .0,
    ];
    for late in &late[..2] {
        assert!(matches!(late, Err(Refusal::WrongServer { .. })), "{late:?}");
    }
    let unknown = Answer::Unknown(Span::one(Position(0)));
    assert_eq!(late[2], Ok(Reply::Unit(UnitReply::Read(vec![unknown]))));
    let said = node.server.describe();
    assert!(said.blank && said.term == Term(0) && said.end == Position(0));
    assert_eq!(said.state, "blank");
}

/// U12, H14: whoever asks may speak of another cluster's layout, which lists other units. The unit asks its own layout servers.
#[tokio::test(start_paused = true)]
async fn a_unit_that_its_own_layout_servers_list_is_not_reset() {
    let reset = |of| UnitRequest::Reset { of };
    for (newest, refusal) in [
        (Some(0), Refusal::InUse { term: Term(0) }),
        (None, Refusal::Unconfirmed { term: Term(14) }),
        (Some(13), Refusal::Unconfirmed { term: Term(14) }),
    ] {
        let node = Node::with(&[newest], 1 << 20).announced().await;
        node.write(0, 0).await.unwrap().0.unwrap();
        let of = node.server.identity();
        assert_eq!(node.ask(14, reset(of)).await, Err(refusal));
        assert_eq!(node.server.identity(), of);
    }
}

/// U9, U12: a unit that could not be emptied holds something or nothing; it says neither until it is started again.
#[tokio::test(start_paused = true)]
async fn a_reset_that_fails_leaves_a_unit_that_takes_no_commands() {
    let node = Node::with(&[Some(1)], 1 << 20);
    node.store.fail_next(CommitError::Failed("gone".to_owned()));
    let of = node.server.identity();
    let failed = node.ask(0, UnitRequest::Reset { of }).await;
    assert!(
        matches!(failed, Err(Refusal::DiskFailed { .. })),
        "{failed:?}"
    );
    let probe = node.ask(0, UnitRequest::Probe).await;
    assert!(
        matches!(probe, Err(Refusal::DiskFailed { .. })),
        "{probe:?}"
    );
    assert_eq!(node.server.identity(), of);
}

/// Damage that nobody reads is found while a peer still holds what was damaged, and is told to whoever looks.
#[tokio::test(start_paused = true)]
async fn scrubbing_finds_damage_that_nobody_has_read() {
    let scrub = Scrub {
        every: Duration::from_secs(60),
        bytes_per_second: 20,
    };
    let node = Node::scrubbing(&[], 1 << 20, Some(scrub)).announced().await;
    for position in 0..40 {
        node.write(0, position).await.unwrap().0.unwrap();
    }
    let stripes = Stripes {
        span: Span::new(Position(0), Position(40)),
        width: 1,
        chains: 1,
        index: 0,
    };
    assert_eq!(
        node.ask(0, UnitRequest::Settled { stripes }).await,
        Ok(UnitReply::Settled(Position(40)))
    );
    node.store.rot(Position(30));
    node.host.clock.sleep(Duration::from_secs(4)).await;
    assert_eq!(node.server.describe().damaged, 0, "so far it has not come");
    node.host.clock.sleep(Duration::from_secs(70)).await;
    assert_eq!(node.server.describe().damaged, 1);
    assert_eq!(
        node.ask(0, UnitRequest::Settled { stripes }).await,
        Ok(UnitReply::Settled(Position(30))),
        "no mark stands above it"
    );
    let (from, count_max) = (Position(0), 9);
    let lacking = UnitRequest::Lacking {
        stripes,
        from,
        count_max,
    };
    let damaged = Answer::Damaged(Span::one(Position(30)));
    assert_eq!(
        node.ask(0, lacking).await,
        Ok(UnitReply::Lacking {
            spans: vec![damaged],
            next: None
        })
    );
}

/// U5: what a restarted unit lacks below its membership it cannot tell, page by page; what was never written is no lack.
#[tokio::test(start_paused = true)]
async fn what_a_unit_cannot_tell_is_listed_in_pages() {
    let node = Node::start();
    node.ask(1, UnitRequest::Seal).await.unwrap();
    let start = Position(20);
    node.ask(1, UnitRequest::Announce { start }).await.unwrap();
    let stripes = Stripes {
        span: Span::new(Position(0), Position(u64::MAX)),
        width: 4,
        chains: 2,
        index: 1,
    };
    let mut found = vec![];
    let mut from = Some(Position(0));
    while let Some(at) = from {
        let lacking = UnitRequest::Lacking {
            stripes,
            from: at,
            count_max: 2,
        };
        let Ok(UnitReply::Lacking { spans, next }) = node.ask(1, lacking).await else {
            panic!("no page");
        };
        assert!(spans.len() <= 2 && next > from || next.is_none());
        found.extend(spans);
        from = next;
    }
    let unknown = |start, end| Answer::Unknown(Span::new(Position(start), Position(end)));
    assert_eq!(found, [unknown(4, 8), unknown(12, 16)]);
}
