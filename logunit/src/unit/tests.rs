//! The unit's rules, a sentence each, and a property against the reference.

use bytes::Bytes;
use milonga_wire::limits::{FILL_POSITIONS_MAX, READ_ANSWERS_MAX, WINDOW_POSITIONS};
use milonga_wire::{
    Answer, ConfirmedEnd, EntryHead, Fill, FillOutcome, Holder, Identity, Incarnation, Payload,
    Piece, Position, Refusal, Session, Span, Stamp, StreamId, StreamLink, Stripes, Term, UnitReply,
    WriteKind, WriteOutcome,
};
use proptest::prelude::*;

use super::reference::Reference;
use super::{Asked, Command, Query, Unit};
use crate::MemoryStore;
use crate::storage::{CommitError, Room, Slot, Storage};
use WriteKind::{Copy, Decide, Follow};

const ENTRY_BYTES_MAX: u32 = 100;
const STORED: WriteOutcome = WriteOutcome::Stored;

type Reply = Result<UnitReply, Refusal>;

/// A unit on a store that survives it.
struct Rig {
    store: MemoryStore,
    unit: Unit,
}

impl Rig {
    fn blank() -> Self {
        let store = MemoryStore::format(Identity([7; 16]));
        let unit = Unit::new(&store, Incarnation(1), ENTRY_BYTES_MAX);
        Self { store, unit }
    }

    /// A member from 0, as `cluster init` makes it.
    fn member() -> Self {
        let mut rig = Self::blank();
        assert_eq!(rig.one(0, announce(0)), Ok(UnitReply::Announced));
        rig
    }

    /// A member that was restarted, then sealed at term 1 and announced to open at `start`.
    fn restarted(mut self, start: u64) -> Self {
        self.restart();
        self.one(1, Command::Seal).unwrap();
        self.one(1, announce(start)).unwrap();
        self
    }

    fn restart(&mut self) {
        let incarnation = Incarnation(self.unit.incarnation().0 + 1);
        self.unit = Unit::new(&self.store.reopen(), incarnation, ENTRY_BYTES_MAX);
    }

    fn all(&mut self, asked: Vec<Asked>) -> Vec<Reply> {
        let mut batch = self.unit.batch();
        for asked in asked {
            self.unit.admit(&mut self.store, &mut batch, asked);
        }
        self.unit.commit(&mut self.store, batch)
    }

    fn ask(&mut self, asked: Asked) -> Reply {
        self.all(vec![asked]).remove(0)
    }

    fn one(&mut self, term: u64, command: Command) -> Reply {
        self.ask(plain(term, command))
    }

    fn write(&mut self, term: u64, kind: WriteKind, piece: Piece) -> Reply {
        self.ask(writes(term, kind, vec![piece]))
    }

    /// One position, by its own writer.
    fn put(&mut self, term: u64, position: u64) -> Reply {
        self.write(term, Decide, piece(term, position, 1))
    }

    fn query(&mut self, term: u64, query: Query) -> Result<(UnitReply, Payload), Refusal> {
        self.unit.answer(&mut self.store, Term(term), query, true)
    }

    fn read_some(
        &mut self,
        term: u64,
        spans: Vec<Span>,
        bytes_max: u32,
    ) -> Result<(Vec<Answer>, Payload), Refusal> {
        let (reply, payload) = self.query(term, Query::Read { spans, bytes_max })?;
        match reply {
            UnitReply::Read(answers) => Ok((answers, payload)),
            other => panic!("{other:?}"),
        }
    }

    fn read(&mut self, term: u64, from: u64, to: u64) -> Result<Vec<Answer>, Refusal> {
        self.read_some(term, vec![span(from, to)], 1_000)
            .map(|(answers, _)| answers)
    }

    fn sealed(&mut self, term: u64) -> milonga_wire::Sealed {
        match self.one(term, Command::Seal) {
            Ok(UnitReply::Sealed(sealed)) => *sealed,
            other => panic!("{other:?}"),
        }
    }
}

fn span(from: u64, to: u64) -> Span {
    Span::new(Position(from), Position(to))
}

fn plain(term: u64, command: Command) -> Asked {
    Asked {
        term: Term(term),
        command,
        payload: Payload::new(),
        confirmed: false,
    }
}

fn announce(start: u64) -> Command {
    Command::Announce {
        start: Position(start),
    }
}

fn trim(to: u64, settled: u64) -> Command {
    Command::Trim {
        to: Position(to),
        settled: Position(settled),
    }
}

fn stamp(writer: u8, position: u64) -> Stamp {
    Stamp {
        session: Session([writer; 16]),
        request: 0,
        record: position as u32,
    }
}

/// `count` records from `first` of writer 1, whose stamps are the positions'; each is as long as its number in the piece.
fn piece(term: u64, first: u64, count: u32) -> Piece {
    piece_of(1, term, first, count)
}

fn piece_of(writer: u8, term: u64, first: u64, count: u32) -> Piece {
    Piece {
        first: Position(first),
        term: Term(term),
        stamp: stamp(writer, first),
        run: Position(first),
        streams: vec![],
        lengths: (1..=count).collect(),
    }
}

/// Bytes that name their position, in chunks that end nowhere near the records.
fn payload_of(pieces: &[Piece]) -> Payload {
    let record = |head: EntryHead| vec![head.position.0 as u8; head.len as usize];
    let bytes: Vec<u8> = pieces
        .iter()
        .flat_map(Piece::heads)
        .flat_map(record)
        .collect();
    let mut payload = Payload::new();
    for chunk in bytes.chunks(5) {
        payload.push(Bytes::copy_from_slice(chunk));
    }
    payload
}

fn writes(term: u64, kind: WriteKind, pieces: Vec<Piece>) -> Asked {
    Asked {
        payload: payload_of(&pieces),
        ..plain(term, Command::Write { kind, pieces })
    }
}

fn fill(term: u64, kind: WriteKind, decided: u64, spans: Vec<Span>, end: u64) -> Command {
    assert!(kind == Copy || term >= decided);
    Command::Fill(Fill {
        kind,
        decided: Term(decided),
        spans,
        end: ConfirmedEnd {
            end: Position(end),
            term: Term(term),
        },
    })
}

#[allow(clippy::unnecessary_wraps)] // It is compared with what is wrapped.
fn written(outcomes: &[WriteOutcome]) -> Reply {
    Ok(UnitReply::Written(outcomes.to_vec()))
}

fn taken(position: u64, holder: Holder) -> WriteOutcome {
    WriteOutcome::Taken {
        position: Position(position),
        holder,
    }
}

#[allow(clippy::unnecessary_wraps)] // It is compared with what is wrapped.
fn filled(taken: &[(u64, Stamp)]) -> Reply {
    let taken = taken.iter().map(|(p, stamp)| (Position(*p), *stamp));
    Ok(UnitReply::Filled(FillOutcome {
        taken: taken.collect(),
    }))
}

fn stale(asked: u64, current: u64) -> Refusal {
    super::stale(Term(asked), Term(current))
}

fn data(term: u64, position: u64, len: u32) -> Answer {
    Answer::Data(EntryHead {
        position: Position(position),
        term: Term(term),
        stamp: stamp(1, position),
        streams: vec![],
        len,
    })
}

/// U1, U2, H1, H5, H18: CORFU (NSDI '12), "Mapping in CORFU". The answer to a seal is the freeze.
#[test]
fn a_seal_counts_what_was_admitted_before_it_and_refuses_what_comes_after() {
    let mut rig = Rig::member();
    let replies = rig.all(vec![
        writes(0, Decide, vec![piece(0, 4, 2)]),
        plain(1, Command::Seal),
        writes(0, Decide, vec![piece(0, 6, 1)]),
    ]);

    assert_eq!(replies[0], written(&[STORED]));
    let Ok(UnitReply::Sealed(sealed)) = &replies[1] else {
        panic!("{replies:?}")
    };
    assert_eq!(sealed.end, Position(6));
    assert_eq!(sealed.held.len(), 1);
    assert_eq!(sealed.held[0].span, span(4, 6));
    assert_eq!(replies[2], Err(stale(0, 1)));
    assert_eq!(rig.sealed(1).end, Position(6));
    assert_eq!(rig.store.durable().term, Term(1));
}

/// U2: the answer to a seal may be lost.
#[test]
fn a_seal_can_be_repeated_and_never_goes_back() {
    let mut rig = Rig::member();
    let first = rig.sealed(1);
    let commits = rig.store.commits();

    assert_eq!(rig.sealed(1), first);
    assert_eq!(
        rig.store.commits(),
        commits,
        "nothing to write the second time"
    );
    assert_eq!(rig.one(0, Command::Seal), Err(stale(0, 1)));
}

/// U2: else one seal would end the unit for ever.
#[test]
fn a_seal_of_the_largest_term_is_harmless_unless_a_layout_server_confirms_it() {
    let mut rig = Rig::member();
    let largest = plain(u64::MAX, Command::Seal);

    let needs = rig.unit.to_confirm(largest.term, &largest.command);
    assert_eq!(needs, Some(Term(u64::MAX - 1)));
    assert!(matches!(rig.ask(largest), Err(Refusal::TermJump { .. })));
    assert_eq!(rig.put(0, 0), written(&[STORED]));

    let jump = Asked {
        confirmed: true,
        ..plain(5, Command::Seal)
    };
    assert_eq!(rig.unit.to_confirm(jump.term, &jump.command), Some(Term(4)));
    assert!(matches!(rig.ask(jump), Ok(UnitReply::Sealed(_))));
    assert_eq!(rig.unit.to_confirm(Term(6), &Command::Seal), None);
    assert_eq!(rig.unit.term(), Term(5));
}

/// U2, H31: fenced at the unit, by the term, whatever clocks say.
#[test]
fn a_paused_writer_of_an_older_term_is_refused_and_so_is_one_from_the_future() {
    let mut rig = Rig::member();
    rig.sealed(1);
    rig.one(1, announce(8)).unwrap();

    assert_eq!(rig.put(0, 8), Err(stale(0, 1)));
    let future = Err(Refusal::FutureTerm {
        asked: Term(2),
        current: Term(1),
    });
    assert_eq!(rig.put(2, 8), future);
    assert_eq!(rig.one(2, announce(8)), future);
    assert_eq!(rig.one(2, trim(0, 0)), future);
    assert_eq!(rig.one(0, trim(0, 0)), Err(stale(0, 1)));
    assert_eq!(
        rig.one(0, fill(0, Decide, 0, vec![span(0, 1)], 9)),
        Err(stale(0, 1))
    );
    assert_eq!(rig.put(1, 8), written(&[STORED]));
}

/// U6.
#[test]
fn a_sealed_unit_takes_nothing_until_the_new_term_is_announced() {
    let mut rig = Rig::member();
    rig.sealed(1);
    let refused = Err(Refusal::NotAnnounced { term: Term(1) });

    assert_eq!(rig.put(1, 0), refused);
    assert_eq!(rig.one(1, fill(1, Decide, 1, vec![span(0, 1)], 9)), refused);
    assert_eq!(rig.unit.condition(Room::Plenty), "sealed");
    rig.one(1, announce(0)).unwrap();
    assert_eq!(rig.put(1, 0), written(&[STORED]));
    assert_eq!(rig.unit.condition(Room::Plenty), "serving");
}

/// U6.
#[test]
fn an_announcement_can_be_repeated_but_not_changed_within_its_term() {
    let mut rig = Rig::blank();
    assert!(rig.store.durable().blank);
    assert_eq!(rig.unit.condition(Room::Plenty), "blank");
    assert_eq!(rig.one(0, announce(0)), Ok(UnitReply::Announced));
    assert!(!rig.store.durable().blank);

    assert_eq!(rig.one(0, announce(0)), Ok(UnitReply::Announced));
    assert!(matches!(
        rig.one(0, announce(5)),
        Err(Refusal::Malformed { .. })
    ));
    rig.sealed(1);
    assert_eq!(rig.one(1, announce(5)), Ok(UnitReply::Announced));
    let sealed = rig.sealed(1);
    assert_eq!(sealed.announced, Some((Term(1), Position(5))));
    assert_eq!(
        sealed.member_from,
        Some(Position(0)),
        "a later term does not shrink membership"
    );
}

/// U3; CORFU (NSDI '12), "Flash Unit": write-once.
#[test]
fn the_first_write_stays_and_later_ones_are_told_whose_it_is() {
    let mut rig = Rig::member();
    assert_eq!(rig.write(0, Decide, piece(0, 0, 2)), written(&[STORED]));
    let commits = rig.store.commits();

    assert_eq!(rig.write(0, Decide, piece(0, 0, 2)), written(&[STORED]));
    let lost = rig.write(0, Decide, piece_of(2, 0, 1, 1));
    assert_eq!(lost, written(&[taken(1, Holder::Data(stamp(1, 1)))]));
    assert_eq!(rig.store.commits(), commits, "neither wrote anything");
    assert_eq!(rig.read(0, 0, 2), Ok(vec![data(0, 0, 1), data(0, 1, 2)]));
}

/// U3: a retry that finds part of it stored writes the rest, and only the rest.
#[test]
fn a_piece_is_all_or_nothing_and_its_own_positions_do_not_stand_in_its_way() {
    let mut rig = Rig::member();
    rig.write(0, Decide, piece_of(2, 0, 3, 1)).unwrap();
    let lost = rig.write(0, Decide, piece(0, 0, 5));
    assert_eq!(lost, written(&[taken(3, Holder::Data(stamp(2, 3)))]));
    assert_eq!(
        rig.read(0, 0, 3),
        Ok(vec![Answer::Unwritten(span(0, 3))]),
        "nothing of it"
    );

    rig.write(0, Decide, piece(0, 11, 1)).unwrap();
    assert_eq!(rig.write(0, Decide, piece(0, 10, 3)), written(&[STORED]));
    let (answers, payload) = rig.read_some(0, vec![span(10, 13)], 100).unwrap();
    assert_eq!(answers, [data(0, 10, 1), data(0, 11, 1), data(0, 12, 3)]);
    assert_eq!(&payload.into_bytes()[..], [10, 11, 12, 12, 12]);
}

/// U1, U3: a second write to a position whose first is in flight waits for its outcome.
#[test]
fn writes_in_one_batch_see_each_other() {
    let mut rig = Rig::member();
    let replies = rig.all(vec![
        writes(0, Decide, vec![piece(0, 0, 4)]),
        writes(0, Decide, vec![piece(0, 0, 4)]),
        writes(0, Decide, vec![piece_of(2, 0, 2, 1), piece_of(2, 0, 4, 1)]),
        plain(0, fill(0, Decide, 0, vec![span(3, 7)], 7)),
        writes(0, Decide, vec![piece(0, 5, 1)]),
        plain(0, trim(2, 2)),
        writes(0, Decide, vec![piece(0, 1, 2)]),
    ]);

    assert_eq!(replies[0], written(&[STORED]));
    assert_eq!(replies[1], written(&[STORED]));
    let lost = taken(2, Holder::Data(stamp(1, 2)));
    assert_eq!(replies[2], written(&[lost, STORED]));
    assert_eq!(replies[3], filled(&[(3, stamp(1, 3)), (4, stamp(2, 4))]));
    assert_eq!(replies[4], written(&[taken(5, Holder::Junk)]));
    assert_eq!(replies[5], Ok(UnitReply::Trimmed(Position(2))));
    assert_eq!(replies[6], Err(Refusal::Trimmed { to: Position(2) }));
    assert_eq!(rig.store.commits(), 2, "the announcement, and all this");
}

/// U3: a refused request is nothing, even where its first pieces would have fitted.
#[test]
fn a_refused_request_leaves_nothing_behind_for_the_rest_of_its_batch() {
    let mut rig = Rig::member();
    rig.put(0, 2).unwrap();
    rig.store.damage(Position(2));
    let replies = rig.all(vec![
        writes(0, Decide, vec![piece(0, 0, 2), piece(0, 2, 1)]),
        writes(0, Decide, vec![piece_of(2, 0, 0, 2)]),
    ]);

    let span = Span::one(Position(2));
    assert_eq!(replies[0], Err(Refusal::Unknown { span }));
    assert_eq!(replies[1], written(&[STORED]));
    assert_eq!(rig.unit.end(), Position(3));
}

/// U1, U4, U9, H22, H30; `PostgreSQL`'s fsync of 2018: no second sync, no answer as if the first had worked.
#[test]
fn a_failed_commit_refuses_the_whole_batch_and_every_command_after_it() {
    let mut rig = Rig::member();
    rig.put(0, 0).unwrap();
    rig.store
        .fail_next(CommitError::Failed("no such luck".to_owned()));
    let why = "no such luck".to_owned();
    let failed: Reply = Err(Refusal::DiskFailed { why });
    let replies = rig.all(vec![
        writes(0, Decide, vec![piece(0, 1, 1)]),
        plain(1, Command::Seal),
        writes(0, Decide, vec![piece(0, 0, 1)]),
    ]);

    assert_eq!(replies, vec![failed.clone(); 3]);
    assert_eq!(rig.put(0, 5), failed);
    assert_eq!(rig.one(0, Command::Probe), failed);
    assert_eq!(rig.one(0, Command::Seal), failed);
    assert_eq!(rig.unit.condition(Room::Plenty), "failed");
    assert_eq!(
        rig.read(0, 0, 2),
        Ok(vec![data(0, 0, 1), Answer::Unknown(span(1, 2))]),
        "what is durable is read; what may or may not be, is not called unwritten"
    );
    let mut rig = rig.restarted(1);
    assert_eq!(rig.put(1, 1), written(&[STORED]));
}

/// U6, H15: an announcement is no way around the seal in which a restarted unit says what it holds. Whoever may announce and
/// knows the new process start, which every server tells, would make "never written" of what it lost.
#[test]
fn a_restarted_unit_is_announced_to_only_after_a_seal() {
    let mut rig = Rig::member();
    rig.put(0, 0).unwrap();
    let announce = |start| Command::Announce {
        start: Position(start),
    };
    assert_eq!(rig.one(0, announce(0)), Ok(UnitReply::Announced), "again");
    rig.restart();
    let refused = rig.one(0, announce(0));
    assert!(
        matches!(refused, Err(Refusal::Malformed { .. })),
        "{refused:?}"
    );
    rig.one(1, Command::Seal).unwrap();
    assert_eq!(rig.one(1, announce(1)), Ok(UnitReply::Announced));
}

/// U5, U6, H15, H16: `BookKeeper` #2612.
#[test]
fn a_restarted_unit_says_unknown_of_what_it_lacks_below_its_membership() {
    let mut rig = Rig::member();
    rig.put(0, 0).unwrap();
    rig.put(0, 3).unwrap();
    rig.store.lose(span(3, 4));
    rig.restart();
    assert_eq!(rig.unit.condition(Room::Plenty), "restarted");
    assert_eq!(
        rig.read(0, 0, 9),
        Ok(vec![data(0, 0, 1), Answer::Unknown(span(1, 9))]),
        "no term has listed it since"
    );

    let mut rig = rig.restarted(5);
    assert_eq!(
        rig.read(1, 1, 9),
        Ok(vec![
            Answer::Unknown(span(1, 5)),
            Answer::Unwritten(span(5, 9))
        ])
    );
    let unknown = |from, to| {
        Err(Refusal::Unknown {
            span: span(from, to),
        })
    };
    assert_eq!(rig.write(1, Decide, piece(1, 3, 1)), unknown(3, 4));
    assert_eq!(rig.write(1, Follow, piece(0, 3, 1)), unknown(3, 4));
    assert_eq!(
        rig.one(1, fill(1, Decide, 1, vec![span(0, 7)], 7)),
        unknown(1, 5)
    );
    assert_eq!(
        rig.one(1, fill(1, Follow, 0, vec![span(3, 4)], 7)),
        unknown(3, 4)
    );
    assert_eq!(rig.write(1, Decide, piece(1, 5, 1)), written(&[STORED]));
    rig.sealed(2);
    rig.one(2, announce(9)).unwrap();
    assert_eq!(
        rig.read(2, 1, 5),
        Ok(vec![Answer::Unknown(span(1, 5))]),
        "in later terms too"
    );
}

/// U5: damage is found by whoever touches it first, a reader or a writer.
#[test]
fn damage_is_unknown_and_is_not_filled_over() {
    let mut rig = Rig::member();
    rig.write(0, Decide, piece(0, 0, 3)).unwrap();
    rig.store.rot(Position(1));
    assert_eq!(
        rig.read(0, 0, 3),
        Ok(vec![
            data(0, 0, 1),
            Answer::Damaged(span(1, 2)),
            data(0, 2, 3)
        ])
    );
    assert_eq!(rig.unit.damages(), 1);
    assert_eq!(rig.store.slot(Position(1)), Slot::Damaged);

    rig.store.rot(Position(2));
    let refused = |span| Err(Refusal::Unknown { span });
    assert_eq!(rig.put(0, 2), refused(span(2, 3)));
    assert_eq!(
        rig.one(0, fill(0, Decide, 0, vec![span(0, 3)], 3)),
        refused(span(1, 3))
    );
    assert_eq!(rig.unit.damages(), 2);
}

/// U3, U5: what a peer holds is put back under a decided layout, below its open segment, and nowhere else.
#[test]
fn a_copy_restores_what_is_unknown_or_damaged_and_overwrites_nothing() {
    let mut rig = Rig::member();
    rig.write(0, Decide, piece(0, 0, 2)).unwrap();
    rig.write(0, Decide, piece_of(2, 0, 4, 1)).unwrap();
    rig.store.damage(Position(1));
    let mut rig = rig.restarted(6);

    assert_eq!(rig.write(1, Copy, piece(0, 0, 4)), written(&[STORED]));
    assert_eq!(
        rig.read(1, 0, 4),
        Ok((0..4).map(|p| data(0, p, p as u32 + 1)).collect())
    );
    assert_eq!(
        rig.write(1, Copy, piece(0, 4, 1)),
        written(&[taken(4, Holder::Data(stamp(2, 4)))])
    );
    assert_eq!(
        rig.one(1, fill(1, Copy, 0, vec![span(3, 6)], 0)),
        filled(&[(3, stamp(1, 3)), (4, stamp(2, 4))])
    );
    assert_eq!(
        rig.read(1, 5, 6),
        Ok(vec![Answer::Junk {
            span: span(5, 6),
            term: Term(0)
        }])
    );
    let out = |position| {
        Err(Refusal::OutOfWindow {
            position: Position(position),
            limit: Position(6),
        })
    };
    assert_eq!(rig.write(1, Copy, piece(0, 5, 2)), out(6));
    assert_eq!(rig.one(1, fill(1, Copy, 0, vec![span(7, 8)], 0)), out(7));
    for term in [1, 2] {
        let refused = rig.write(1, Copy, piece(term, 5, 1));
        assert!(matches!(refused, Err(Refusal::Malformed { .. })));
    }
}

/// U3: what is decided now is of the request's term; what is repeated keeps its own.
#[test]
fn an_entry_keeps_the_term_that_decided_it() {
    let mut rig = Rig::member();
    rig.sealed(1);
    rig.one(1, announce(0)).unwrap();

    let malformed = |reply| matches!(reply, Err(Refusal::Malformed { .. }));
    assert!(malformed(rig.write(1, Decide, piece(0, 0, 1))));
    assert!(malformed(rig.write(1, Follow, piece(2, 0, 1))));
    assert!(malformed(
        rig.one(1, fill(1, Decide, 0, vec![span(4, 5)], 9))
    ));
    assert_eq!(rig.write(1, Follow, piece(0, 0, 1)), written(&[STORED]));
    assert_eq!(
        rig.one(1, fill(1, Follow, 0, vec![span(4, 5)], 9)),
        filled(&[])
    );
    assert_eq!(
        rig.one(1, fill(1, Follow, 1, vec![span(5, 6)], 9)),
        filled(&[])
    );
    assert_eq!(rig.write(1, Decide, piece(1, 9, 1)), written(&[STORED]));

    rig.sealed(2);
    let junk = |from, term| Answer::Junk {
        span: span(from, from + 1),
        term: Term(term),
    };
    assert_eq!(
        rig.read(2, 4, 10),
        Ok(vec![
            junk(4, 0),
            junk(5, 1),
            Answer::Unwritten(span(6, 9)),
            data(1, 9, 1)
        ])
    );
}

/// U10, H17: `BookKeeper` #2614, one read did not carry the fence.
#[test]
fn a_reader_of_an_older_term_gets_what_its_term_could_have_seen() {
    let mut rig = Rig::member();
    rig.write(0, Decide, piece(0, 0, 3)).unwrap();
    rig.one(0, trim(1, 1)).unwrap();
    rig.sealed(1);
    rig.one(1, announce(3)).unwrap();
    rig.put(1, 3).unwrap();

    let old = vec![Answer::Trimmed(span(0, 1)), data(0, 1, 2), data(0, 2, 3)];
    assert_eq!(rig.read(0, 0, 9), Ok(old.clone()));
    assert_eq!(rig.read(0, 3, 9), Err(stale(0, 1)), "of a later term");
    assert_eq!(rig.read(0, 4, 9), Err(stale(0, 1)), "never unwritten");
    assert_eq!(
        rig.read(2, 0, 9),
        Err(Refusal::FutureTerm {
            asked: Term(2),
            current: Term(1)
        })
    );
    let new = [old, vec![data(1, 3, 1), Answer::Unwritten(span(4, 9))]].concat();
    assert_eq!(rig.read(1, 0, 9), Ok(new));
}

/// U7: a write at the end + 2^40 would cost an index as large.
#[test]
fn a_write_far_above_the_end_is_out_of_the_window() {
    let mut rig = Rig::member();
    rig.put(0, 9).unwrap();
    let limit = 10 + WINDOW_POSITIONS;
    let out = |position| {
        Err(Refusal::OutOfWindow {
            position: Position(position),
            limit: Position(limit),
        })
    };
    let far = 10 + (1 << 40);
    let single = |position| Piece {
        stamp: stamp(1, 0),
        ..piece(0, position, 1)
    };
    assert_eq!(rig.write(0, Decide, single(far)), out(far));
    assert_eq!(rig.write(0, Follow, single(limit)), out(limit));
    assert_eq!(
        rig.one(0, fill(0, Decide, 0, vec![span(far, far + 1)], u64::MAX)),
        out(far)
    );
    assert_eq!(rig.unit.end(), Position(10));
    assert_eq!(rig.write(0, Decide, single(limit - 1)), written(&[STORED]));
}

/// U7: the segment start that control announced moves the window, however little the unit holds.
#[test]
fn a_new_unit_takes_writes_where_the_announced_segment_opens() {
    let mut rig = Rig::blank();
    rig.sealed(1);
    let start = 1 << 50;
    rig.one(1, announce(start)).unwrap();
    let first = Piece {
        stamp: stamp(1, 0),
        ..piece(1, start + 3, 1)
    };

    assert_eq!(rig.write(1, Decide, first), written(&[STORED]));
    assert_eq!(
        rig.read(1, start - 2, start + 3),
        Ok(vec![
            Answer::Unknown(span(start - 2, start)),
            Answer::Unwritten(span(start, start + 3))
        ])
    );
}

/// U7, H12: reading beyond the end burned positions.
#[test]
fn a_fill_stays_below_the_end_it_names_which_must_be_of_its_own_term() {
    let mut rig = Rig::member();
    let beyond = Err(Refusal::BeyondEnd {
        position: Position(5),
        end: Position(5),
    });
    assert_eq!(rig.one(0, fill(0, Decide, 0, vec![span(3, 6)], 5)), beyond);
    let foreign = Command::Fill(Fill {
        kind: Decide,
        decided: Term(0),
        spans: vec![span(3, 4)],
        end: ConfirmedEnd {
            end: Position(5),
            term: Term(1),
        },
    });
    assert!(matches!(
        rig.one(0, foreign),
        Err(Refusal::BeyondEnd { .. })
    ));
    assert_eq!(rig.unit.end(), Position(0));
    assert_eq!(
        rig.one(0, fill(0, Decide, 0, vec![span(3, 5)], 5)),
        filled(&[])
    );
    assert_eq!(rig.unit.end(), Position(5), "junk counts");
}

/// U3, H9: who loses the race is told the winner, and reads again.
#[test]
fn a_fill_makes_junk_of_holes_only() {
    let mut rig = Rig::member();
    rig.write(0, Decide, piece(0, 2, 2)).unwrap();
    rig.one(0, trim(1, 1)).unwrap();

    let spans = vec![span(0, 3), span(2, 6)];
    let twice = [(2, stamp(1, 2)), (2, stamp(1, 2)), (3, stamp(1, 3))];
    assert_eq!(rig.one(0, fill(0, Decide, 0, spans, 9)), filled(&twice));
    assert_eq!(
        rig.read(0, 0, 7),
        Ok(vec![
            Answer::Trimmed(span(0, 1)),
            Answer::Junk {
                span: span(1, 2),
                term: Term(0)
            },
            data(0, 2, 1),
            data(0, 3, 2),
            Answer::Junk {
                span: span(4, 6),
                term: Term(0)
            },
            Answer::Unwritten(span(6, 7)),
        ])
    );
    assert_eq!(
        rig.write(0, Decide, piece(0, 4, 1)),
        written(&[taken(4, Holder::Junk)])
    );
}

/// U8, H24: the answer is the trim point achieved.
#[test]
fn a_trim_never_goes_back_nor_beyond_what_is_settled() {
    let mut rig = Rig::member();
    rig.write(0, Decide, piece(0, 0, 6)).unwrap();
    let trimmed = |to| Ok(UnitReply::Trimmed(Position(to)));
    let unsettled = |asked, limit| {
        Err(Refusal::Unsettled {
            asked: Position(asked),
            limit: Position(limit),
        })
    };

    assert_eq!(rig.one(0, trim(3, 4)), trimmed(3));
    assert_eq!(rig.one(0, trim(1, 4)), trimmed(3));
    assert_eq!(rig.one(0, trim(5, 4)), unsettled(5, 4));
    assert_eq!(rig.one(0, trim(1 << 40, 1 << 40)), unsettled(1 << 40, 6));
    assert_eq!(
        rig.one(0, trim(5, 1 << 40)),
        trimmed(5),
        "other chains may have settled more"
    );
    let sealed = rig.sealed(1);
    assert_eq!((sealed.trimmed, sealed.settled), (Position(5), Position(6)));
    assert_eq!(sealed.held, []);
    assert_eq!(
        rig.write(1, Copy, piece(0, 4, 1)),
        Err(Refusal::NotAnnounced { term: Term(1) })
    );
    rig.one(1, announce(8)).unwrap();
    assert_eq!(
        rig.write(1, Copy, piece(0, 4, 1)),
        Err(Refusal::Trimmed { to: Position(5) })
    );
    assert_eq!(
        rig.one(1, trim(8, 8)),
        trimmed(8),
        "a joining unit adopts it"
    );
}

/// U11, H33: the disk filled and reads and trims stopped too.
#[test]
fn a_full_disk_refuses_what_decides_first_and_never_reads_trims_and_seals() {
    let mut rig = Rig::member();
    rig.write(0, Decide, piece(0, 0, 2)).unwrap();
    rig.store.set_room(Room::Reserve);
    assert_eq!(rig.put(0, 2), Err(Refusal::DiskFull));
    assert_eq!(rig.put(0, 1), written(&[STORED]), "a retry stores nothing");
    let scarce = written(&[WriteOutcome::InReserve]);
    assert_eq!(rig.write(0, Follow, piece(0, 2, 1)), scarce);
    assert_eq!(
        rig.one(0, fill(0, Decide, 0, vec![span(3, 4)], 9)),
        filled(&[])
    );
    assert_eq!(rig.unit.condition(Room::Reserve), "full");

    rig.store.set_room(Room::Little);
    assert_eq!(rig.write(0, Follow, piece(0, 4, 1)), Err(Refusal::DiskFull));
    let hole = vec![span(5, 6)];
    assert_eq!(rig.one(0, fill(0, Follow, 0, hole, 9)), filled(&[]));

    rig.store.set_room(Room::None);
    assert_eq!(rig.write(0, Follow, piece(0, 4, 1)), Err(Refusal::DiskFull));
    assert_eq!(
        rig.one(0, fill(0, Decide, 0, vec![span(4, 5)], 9)),
        Err(Refusal::DiskFull)
    );
    assert_eq!(rig.read(0, 0, 1), Ok(vec![data(0, 0, 1)]));
    assert_eq!(rig.one(0, trim(1, 1)), Ok(UnitReply::Trimmed(Position(1))));
    assert_eq!(rig.sealed(1).end, Position(6));
    rig.store.set_room(Room::Plenty);
    rig.one(1, announce(6)).unwrap();
    assert_eq!(rig.put(1, 6), written(&[STORED]));
}

/// U11: room may run out between the decision and the commit.
#[test]
fn a_batch_that_finds_no_room_still_seals_and_trims() {
    let mut rig = Rig::member();
    rig.write(0, Decide, piece(0, 0, 2)).unwrap();
    rig.store.fail_next(CommitError::Full);
    let replies = rig.all(vec![
        writes(0, Decide, vec![piece(0, 2, 2)]),
        plain(0, trim(1, 1)),
        plain(1, Command::Seal),
        writes(0, Decide, vec![piece(0, 4, 1)]),
    ]);

    assert_eq!(replies[0], Err(Refusal::DiskFull));
    assert_eq!(replies[1], Ok(UnitReply::Trimmed(Position(1))));
    let Ok(UnitReply::Sealed(sealed)) = &replies[2] else {
        panic!("{replies:?}")
    };
    assert_eq!(sealed.end, Position(2), "what found no room is not counted");
    assert_eq!(replies[3], Err(Refusal::DiskFull));
    assert_eq!(rig.unit.term(), Term(1));
    assert_eq!(rig.unit.failure(), None);
}

/// U3: bounds that need no state, whoever asks.
#[test]
fn requests_over_a_bound_name_it() {
    let mut rig = Rig::member();
    let large = Piece {
        lengths: vec![ENTRY_BYTES_MAX + 1],
        ..piece(0, 0, 1)
    };
    assert!(matches!(
        rig.write(0, Decide, large),
        Err(Refusal::TooLarge { .. })
    ));
    let short = Asked {
        payload: Payload::from(vec![0; 2]),
        ..writes(0, Decide, vec![piece(0, 0, 2)])
    };
    assert!(matches!(rig.ask(short), Err(Refusal::Malformed { .. })));
    assert!(matches!(
        rig.ask(writes(0, Decide, vec![])),
        Err(Refusal::TooLarge { .. })
    ));
    let wide = span(0, FILL_POSITIONS_MAX + 1);
    for spans in [vec![wide], vec![span(0, u64::MAX); 2], vec![]] {
        let reply = rig.one(0, fill(0, Decide, 0, spans, u64::MAX));
        assert!(matches!(reply, Err(Refusal::TooLarge { .. })), "{reply:?}");
    }
    assert!(matches!(
        rig.one(0, fill(0, Decide, 0, vec![span(3, 3)], 9)),
        Err(Refusal::Malformed { .. })
    ));
}

/// A read is cut at its bounds, but never before one answer; runs take one answer each.
#[test]
fn a_read_is_cut_at_a_bound_after_at_least_one_answer() {
    let mut rig = Rig::member();
    rig.write(0, Decide, piece(0, 0, 8)).unwrap();
    let everything = vec![span(0, 1 << 60)];

    let (answers, payload) = rig.read_some(0, everything.clone(), 0).unwrap();
    assert_eq!(answers, [data(0, 0, 1)]);
    assert_eq!(payload.len(), 1);
    let (answers, payload) = rig.read_some(0, everything.clone(), 7).unwrap();
    assert_eq!((answers.len(), payload.len()), (3, 6));
    let (answers, _) = rig.read_some(0, everything, u32::MAX).unwrap();
    assert_eq!(answers.len(), 9);
    assert_eq!(answers[8], Answer::Unwritten(span(8, 1 << 60)));

    let spans = vec![
        span(7, 8),
        span(0, 2),
        span(9, 9),
        span(20, 22),
        span(22, 30),
    ];
    let (answers, payload) = rig.read_some(0, spans, 100).unwrap();
    let expected = [
        data(0, 7, 8),
        data(0, 0, 1),
        data(0, 1, 2),
        Answer::Unwritten(span(20, 30)),
    ];
    assert_eq!(answers, expected);
    assert_eq!(&payload.into_bytes()[..], [7, 7, 7, 7, 7, 7, 7, 7, 0, 1, 1]);
}

/// A reply whose heads do not fit its frame would never arrive, however often it is asked for.
#[test]
fn a_read_of_many_entries_with_many_streams_fits_its_frame() {
    let mut rig = Rig::member();
    let streams: Vec<StreamLink> = (0..64)
        .map(|id| StreamLink {
            stream: StreamId([id; 16]),
            before: milonga_wire::Before::Known(vec![]),
        })
        .collect();
    for first in (0..8_000).step_by(1_000) {
        let piece = Piece {
            streams: streams.clone(),
            lengths: vec![0; 1_000],
            ..piece(0, first, 1)
        };
        rig.write(0, Decide, piece).unwrap();
    }
    let (answers, _) = rig.read_some(0, vec![span(0, 8_000)], 1).unwrap();
    assert!(answers.len() < READ_ANSWERS_MAX.min(8_000));
    let reply = UnitReply::Read(answers);
    assert!(milonga_wire::Frame::new(&reply, Payload::new()).is_ok());
}

/// A settled mark is worked out once and then goes on from there, until damage is found below it.
#[test]
fn the_settled_mark_is_the_first_position_of_its_stripes_that_is_lacking() {
    let mut rig = Rig::member();
    let stripes = Stripes {
        span: span(0, u64::MAX),
        width: 2,
        chains: 2,
        index: 0,
    };
    let settled = |rig: &mut Rig, term| {
        let (reply, _) = rig.query(term, Query::Settled { stripes })?;
        Ok::<_, Refusal>(reply)
    };
    let mark = |to| Ok(UnitReply::Settled(Position(to)));

    assert_eq!(settled(&mut rig, 0), mark(0));
    rig.write(0, Decide, piece(0, 0, 2)).unwrap();
    rig.put(0, 4).unwrap();
    assert_eq!(settled(&mut rig, 0), mark(5), "2 and 3 are another chain's");
    assert_eq!(
        settled(&mut rig, 1),
        Err(Refusal::FutureTerm {
            asked: Term(1),
            current: Term(0)
        })
    );
    rig.store.rot(Position(1));
    assert_eq!(settled(&mut rig, 0), mark(5), "nobody has noticed");
    rig.read(0, 0, 5).unwrap();
    assert_eq!(settled(&mut rig, 0), mark(1));
    rig.sealed(1);
    assert_eq!(settled(&mut rig, 0), Err(stale(0, 1)));
    let none = Stripes {
        chains: 0,
        ..stripes
    };
    assert!(matches!(
        rig.query(1, Query::Settled { stripes: none }),
        Err(Refusal::Malformed { .. })
    ));
}

/// The answer to a seal names what is held above the mark, so the mark must not run ahead of what it speaks of.
#[test]
fn a_settled_mark_is_remembered_for_trusted_callers_and_never_jumps_over_what_is_held() {
    let mut rig = Rig::member();
    rig.write(0, Decide, piece(0, 0, 3)).unwrap();
    rig.put(0, 5).unwrap();
    let stripes = |from| Stripes {
        span: span(from, u64::MAX),
        width: 1,
        chains: 1,
        index: 0,
    };
    let ask = |rig: &mut Rig, from, trusted| {
        let query = Query::Settled {
            stripes: stripes(from),
        };
        let asked = rig.unit.answer(&mut rig.store, Term(0), query, trusted);
        assert!(asked.is_ok());
        rig.one(0, Command::Probe).unwrap();
        rig.store.durable().settled
    };

    assert_eq!(ask(&mut rig, 0, false), Position(0));
    assert_eq!(ask(&mut rig, 5, true), Position(0), "0 to 3 are held below");
    assert_eq!(ask(&mut rig, 0, true), Position(3));
    assert_eq!(ask(&mut rig, 6, true), Position(3), "5 is held in between");
    rig.store.lose(span(0, 3));
    rig.restart();
    assert_eq!(rig.sealed(1).settled, Position(3));
    assert_eq!(rig.sealed(1).held[0].span, span(5, 6));
}

/// Tango (SOSP '13), "Streaming CORFU": what the sequencer is bootstrapped from, asked after the seal and in its term.
#[test]
fn stream_tails_and_positions_are_told_in_the_units_own_term_only() {
    let mut rig = Rig::member();
    let stream = StreamId([3; 16]);
    let link = StreamLink {
        stream,
        before: milonga_wire::Before::Known(vec![]),
    };
    let run = Piece {
        streams: vec![link],
        ..piece(0, 0, 6)
    };
    rig.write(0, Decide, run).unwrap();
    let tails = Query::StreamTails {
        after: None,
        count_max: 0,
    };
    let positions = Query::StreamPositions {
        stream,
        span: span(1, 6),
        count_max: 3,
    };

    let (reply, _) = rig.query(0, tails.clone()).unwrap();
    let last = (2..6).rev().map(Position).collect();
    assert_eq!(
        reply,
        UnitReply::StreamTails {
            tails: vec![(stream, milonga_wire::Before::Known(last))],
            more: false
        }
    );
    let (reply, _) = rig.query(0, positions.clone()).unwrap();
    assert_eq!(
        reply,
        UnitReply::StreamPositions {
            positions: vec![Position(1), Position(2), Position(3)],
            next: Some(Position(4))
        }
    );
    rig.sealed(1);
    for query in [tails, positions] {
        assert_eq!(rig.query(0, query.clone()).unwrap_err(), stale(0, 1));
        assert!(rig.query(2, query).is_err());
    }
}

/// A probe is a durable write that no term stands in the way of: a failing disk does not answer it.
#[test]
fn a_probe_writes_whatever_the_term_and_leaves_a_blank_unit_blank() {
    let mut rig = Rig::blank();
    assert_eq!(rig.one(3, Command::Probe), Ok(UnitReply::Probed));
    assert_eq!(rig.store.commits(), 1);
    assert!(rig.unit.is_blank() && rig.store.durable().blank);
}

/// What a random run may do to a unit, its numbers small so that things collide.
#[derive(Clone, Debug)]
enum Step {
    Write(i8, WriteKind, Vec<(u8, u64, u32, i8)>),
    Fill(i8, WriteKind, i8, Vec<(u64, u64)>, u64, i8),
    Seal(i8, bool),
    Announce(i8, u64),
    Trim(i8, u64, u64),
    Probe,
    Commit,
    Fail,
    Restart(Option<u64>),
    Damage(u64),
    Room(Room),
    Settled(u16, u16, u64),
}

fn kind() -> impl Strategy<Value = WriteKind> {
    prop_oneof![4 => Just(Decide), 3 => Just(Follow), 2 => Just(Copy)]
}

/// The unit's term, mostly.
fn near() -> impl Strategy<Value = i8> {
    prop_oneof![12 => Just(0_i8), 2 => Just(-1), 1 => Just(1)]
}

/// The term of the request, or an earlier one.
fn decided() -> impl Strategy<Value = i8> {
    prop_oneof![3 => Just(0_i8), 2 => Just(-1), 1 => Just(1)]
}

fn step() -> impl Strategy<Value = Step> {
    let at = 0_u64..24;
    let piece = (1_u8..4, at.clone(), 1_u32..6, decided());
    let pieces = prop::collection::vec(piece, 1..4);
    let spans = prop::collection::vec((at.clone(), 1_u64..6), 1..3);
    let room = prop_oneof![
        4 => Just(Room::Plenty),
        1 => Just(Room::Reserve),
        1 => Just(Room::Little),
        1 => Just(Room::None),
    ];
    prop_oneof![
        20 => (near(), kind(), pieces).prop_map(|(t, k, p)| Step::Write(t, k, p)),
        10 => (near(), kind(), decided(), spans, 4_u64..40, near())
            .prop_map(|(t, k, d, s, e, u)| Step::Fill(t, k, d, s, e, u)),
        3 => (0_i8..4, any::<bool>()).prop_map(|(t, c)| Step::Seal(t - 1, c)),
        6 => (near(), prop_oneof![3 => Just(12_u64), 1 => at.clone()])
            .prop_map(|(t, s)| Step::Announce(t, s)),
        2 => (near(), at.clone(), at.clone()).prop_map(|(t, a, b)| Step::Trim(t, a / 2, b)),
        1 => Just(Step::Probe),
        20 => Just(Step::Commit),
        1 => Just(Step::Fail),
        1 => prop::option::of(at.clone()).prop_map(Step::Restart),
        1 => at.prop_map(Step::Damage),
        1 => room.prop_map(Step::Room),
        2 => (1_u16..4, 0_u16..4, 0_u64..9).prop_map(|(c, i, s)| Step::Settled(c, i % c, s)),
    ]
}

fn offset(term: Term, by: i8) -> Term {
    Term(term.0.saturating_add_signed(i64::from(by)))
}

/// The command of a step, if it is one.
fn command(step: &Step, current: Term) -> Option<Asked> {
    let ask = |by: i8, command| Asked {
        term: offset(current, by),
        command,
        payload: Payload::new(),
        confirmed: false,
    };
    Some(match step {
        Step::Write(by, kind, pieces) => {
            let term = offset(current, *by);
            let make = |(writer, first, count, by): &(u8, u64, u32, i8)| {
                let own = if *kind == Decide {
                    term
                } else {
                    offset(term, *by)
                };
                piece_of(*writer, own.0, *first, *count)
            };
            writes(term.0, *kind, pieces.iter().map(make).collect())
        }
        Step::Fill(by, kind, decided, spans, end, end_by) => {
            let term = offset(current, *by);
            let own = if *kind == Decide { 0 } else { *decided };
            let fill = Fill {
                kind: *kind,
                decided: offset(term, own),
                spans: spans.iter().map(|(at, len)| span(*at, at + len)).collect(),
                end: ConfirmedEnd {
                    end: Position(*end),
                    term: offset(term, *end_by),
                },
            };
            ask(*by, Command::Fill(fill))
        }
        Step::Seal(by, confirmed) => Asked {
            confirmed: *confirmed,
            ..ask(*by, Command::Seal)
        },
        Step::Announce(by, start) => ask(*by, announce(*start)),
        Step::Trim(by, to, settled) => ask(*by, trim(*to, *settled)),
        Step::Probe => ask(0, Command::Probe),
        Step::Commit
        | Step::Fail
        | Step::Restart(_)
        | Step::Damage(_)
        | Step::Room(_)
        | Step::Settled(..) => return None,
    })
}

/// Leaves out what the rules leave open: words, and how far a run of unknown positions is named.
fn plainly(reply: Reply) -> Reply {
    reply.map_err(|refusal| match refusal {
        Refusal::Unknown { span } => Refusal::Unknown {
            span: Span::one(span.start),
        },
        Refusal::Malformed { .. } => Refusal::malformed(""),
        Refusal::TooLarge { .. } => Refusal::too_large("", 0, 0),
        Refusal::DiskFailed { .. } => Refusal::DiskFailed { why: String::new() },
        other => other,
    })
}

/// One answer per position, with its bytes.
fn spread((answers, payload): (Vec<Answer>, Payload)) -> Vec<(Answer, Vec<u8>)> {
    let mut bytes = payload.into_bytes();
    let mut spread = Vec::new();
    for answer in answers {
        for one in answer.span().positions().map(Span::one) {
            let (answer, len) = match &answer {
                Answer::Data(head) => (answer.clone(), head.len as usize),
                Answer::Junk { term, .. } => (
                    Answer::Junk {
                        span: one,
                        term: *term,
                    },
                    0,
                ),
                Answer::Trimmed(_) => (Answer::Trimmed(one), 0),
                Answer::Unwritten(_) => (Answer::Unwritten(one), 0),
                Answer::Unknown(_) => (Answer::Unknown(one), 0),
                Answer::Damaged(_) => (Answer::Damaged(one), 0),
            };
            spread.push((answer, bytes.split_to(len).to_vec()));
        }
    }
    assert!(bytes.is_empty());
    spread
}

/// A unit, and the reference that must always say the same.
struct Pair {
    rig: Rig,
    reference: Reference,
    waiting: Vec<Asked>,
}

impl Pair {
    fn new() -> Self {
        let rig = Rig::blank();
        let mut reference = Reference::new(Identity([7; 16]), ENTRY_BYTES_MAX);
        reference.restart(Incarnation(1));
        let waiting = Vec::new();
        Self {
            rig,
            reference,
            waiting,
        }
    }

    fn commit(&mut self, fails: bool) {
        let asked = std::mem::take(&mut self.waiting);
        let before = self.reference.clone();
        let expected: Vec<_> = asked.iter().map(|a| self.reference.command(a)).collect();
        let mut batch = self.rig.unit.batch();
        for asked in asked {
            self.rig.unit.admit(&mut self.rig.store, &mut batch, asked);
        }
        let fails = fails && !batch.is_empty();
        if fails {
            let error = CommitError::Failed("asked for".to_owned());
            self.rig.store.fail_next(error);
        }
        let replies = self.rig.unit.commit(&mut self.rig.store, batch);
        let replies: Vec<Reply> = replies.into_iter().map(plainly).collect();
        if fails {
            self.reference = before;
            self.reference.failed = true;
            self.reference.member_from = None;
            let why = String::new();
            let refused = Err(Refusal::DiskFailed { why });
            assert_eq!(replies, vec![refused; expected.len()]);
            return;
        }
        let sealed = UnitReply::Sealed(self.reference.sealed().into());
        let expected: Vec<Reply> = expected
            .into_iter()
            .map(|reply| plainly(reply.map(|reply| reply.unwrap_or_else(|| sealed.clone()))))
            .collect();
        assert_eq!(replies, expected);
    }

    fn step(&mut self, step: &Step) {
        // Half of the terms asked for are the ones that the waiting commands are about to bring.
        let seals = |asked: &&Asked| matches!(asked.command, Command::Seal);
        let term = self.waiting.iter().rev().find(seals);
        let term = term.map_or(self.reference.term, |asked| asked.term);
        if let Some(asked) = command(step, term) {
            self.waiting.push(asked);
            return;
        }
        self.commit(matches!(step, Step::Fail));
        match step {
            Step::Restart(lost) => {
                self.rig.restart();
                self.reference.restart(self.rig.unit.incarnation());
                if let Some(from) = lost {
                    self.rig.store.lose(span(*from, 64));
                    self.reference.lose(span(*from, 64));
                }
            }
            Step::Damage(position) => {
                self.rig.store.damage(Position(*position));
                self.reference.damage(Position(*position));
                self.rig.unit.forget_marks();
            }
            Step::Room(room) => {
                self.rig.store.set_room(*room);
                self.reference.room = *room;
            }
            Step::Settled(chains, index, start) => {
                let stripes = Stripes {
                    span: span(*start, 40),
                    width: 3,
                    chains: *chains,
                    index: *index,
                };
                let query = Query::Settled { stripes };
                let term = self.reference.term;
                let (rig, expected) = (&mut self.rig, self.reference.first_lacking(&stripes));
                let (reply, _) = rig.unit.answer(&mut rig.store, term, query, false).unwrap();
                assert_eq!(reply, UnitReply::Settled(expected));
            }
            _ => {}
        }
        self.check();
    }

    /// Every position reads alike, in this term and the ones around it.
    fn check(&mut self) {
        let all = span(0, 40);
        let term = self.reference.term;
        for by in [-1, 0, 1] {
            let asked = offset(term, by);
            let read = self.rig.read_some(asked.0, vec![all], u32::MAX);
            assert_eq!(read.map(spread), self.reference.read(asked, all));
        }
        assert_eq!(self.rig.unit.end(), self.reference.end);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

    /// U1 to U11: whatever is asked, in whatever batches, through failures and restarts, the unit answers as if it took
    /// one command at a time and looked at one position at a time.
    #[test]
    fn a_unit_is_its_reference(steps in prop::collection::vec(step(), 1..120)) {
        let mut pair = Pair::new();
        for step in &steps {
            pair.step(step);
        }
        pair.commit(false);
        pair.check();
    }
}
