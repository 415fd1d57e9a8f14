//! Durable named cursors: where a reader stopped, for whoever goes on.
//!
//! A cursor is the first position that is still to be read, under a name. It moves where it is told to, forth or back, and a
//! move may ask for the version that it was read with: of a group of readers that share one, the first to move it wins, and
//! the others see that they are not alone.

use std::collections::BTreeMap;

use milonga_wire::{Position, StreamId};
use serde::{Deserialize, Serialize};

use super::{
    DecideError, ImageError, ImageReader, ImageWriter, Keys, Object, Objects, Part, PlayError,
    Seen, UpdateError, View,
};

/// Bytes of the longest name.
pub const NAME_BYTES_MAX: usize = 255;

/// Where a reader stopped.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub struct Cursor {
    /// The first position that is still to be read.
    pub position: Position,
    /// The position of its last move: what the next one may ask for.
    pub version: Position,
}

/// What has to be true of a cursor for a move to take place.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub enum If {
    /// Nothing.
    Always,
    /// There is none of that name.
    Absent,
    /// Its last move was this one.
    Version(Position),
}

impl If {
    fn holds(self, found: Option<&Cursor>) -> bool {
        match self {
            Self::Always => true,
            Self::Absent => found.is_none(),
            Self::Version(version) => found.is_some_and(|found| found.version == version),
        }
    }
}

/// What changes the cursors, as it stands in the log.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub enum Update {
    /// The cursor of that name, new or not, is at `to`.
    Move {
        /// Its name.
        name: String,
        /// The first position that is still to be read.
        to: Position,
        /// What has to be true.
        expect: If,
    },
    /// There is no cursor of that name any more.
    Remove {
        /// Its name.
        name: String,
        /// What has to be true.
        expect: If,
    },
}

/// What an update brought about.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub enum Outcome {
    /// It took place.
    Done,
    /// Something else was there: nothing changed.
    Conflict {
        /// What; nothing if there is no cursor of that name.
        found: Option<Cursor>,
    },
}

/// All cursors after some position.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct CursorsState {
    cursors: BTreeMap<String, Cursor>,
}

impl CursorsState {
    /// The cursor of that name.
    pub fn get(&self, name: &str) -> Option<Cursor> {
        self.cursors.get(name).copied()
    }

    /// All of them, by name.
    pub fn all(&self) -> impl Iterator<Item = (&str, Cursor)> {
        let cursors = self.cursors.iter();
        cursors.map(|(name, cursor)| (name.as_str(), *cursor))
    }
}

impl Object for CursorsState {
    const KIND: &'static str = "cursors";
    type Update = Update;
    type Outcome = Outcome;

    fn apply(&mut self, version: Position, update: Update) -> Outcome {
        let (name, to, expect) = match update {
            Update::Move { name, to, expect } => (name, Some(to), expect),
            Update::Remove { name, expect } => (name, None, expect),
        };
        let found = self.get(&name);
        if !expect.holds(found.as_ref()) {
            return Outcome::Conflict { found };
        }
        match to {
            Some(position) => self.cursors.insert(name, Cursor { position, version }),
            None => self.cursors.remove(&name),
        };
        Outcome::Done
    }

    fn snapshot(&self, to: &mut ImageWriter) {
        self.cursors.iter().for_each(|cursor| to.write(&cursor));
    }

    fn restore(from: &mut ImageReader) -> Result<Self, ImageError> {
        let mut cursors = BTreeMap::new();
        while let Some((name, cursor)) = from.read()? {
            cursors.insert(name, cursor);
        }
        Ok(Self { cursors })
    }

    fn part(update: &Update) -> Part {
        let (Update::Move { name, .. } | Update::Remove { name, .. }) = update;
        Part::Key(name.clone().into_bytes().into())
    }

    fn seen(&self, part: &Part) -> Option<Seen> {
        Keys::seen(part, |keys| {
            let all = self.cursors.iter();
            let all = all.filter(|(name, _)| keys.contains(&name.as_bytes().to_vec().into()));
            Seen::all(all.map(|(_, cursor)| cursor.version))
        })
    }
}

/// The cursors of a log. Clones share one copy of them.
///
/// ```no_run
/// use milonga_client::object::Objects;
/// use milonga_client::object::cursors::{Cursors, If, Outcome};
///
/// # async fn use_it(log: milonga_client::Log) -> Result<(), Box<dyn std::error::Error>> {
/// let cursors = Cursors::open(&Objects::new(&log));
/// let stopped = cursors.get("billing").await?;
/// let (from, expect) = match stopped {
///     Some(cursor) => (cursor.position, If::Version(cursor.version)),
///     None => (milonga_client::Position::FIRST, If::Absent),
/// };
/// let mut follower = log.follow(from);
/// let entry = follower.next().await?;
/// // … what is to be done with it, then:
/// match cursors.move_to("billing", entry.position.next(), expect).await? {
///     (version, Outcome::Done) => println!("moved; the next move asks for {version}"),
///     (_, Outcome::Conflict { found }) => println!("somebody else reads for billing: {found:?}"),
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Cursors {
    view: View<CursorsState>,
}

impl Cursors {
    /// Those of this log.
    pub fn open(objects: &Objects) -> Self {
        Self {
            view: objects.host(StreamId::of_name(CursorsState::KIND)),
        }
    }

    /// The view that they are.
    pub fn view(&self) -> &View<CursorsState> {
        &self.view
    }

    /// The cursor of that name, once everything acknowledged before this call is known.
    ///
    /// # Errors
    /// [`PlayError`].
    pub async fn get(&self, name: &str) -> Result<Option<Cursor>, PlayError> {
        self.view.read(|state| state.get(name)).await
    }

    /// All of them, by name.
    ///
    /// # Errors
    /// [`PlayError`].
    pub async fn all(&self) -> Result<Vec<(String, Cursor)>, PlayError> {
        let all = |state: &CursorsState| {
            let all = state.all();
            all.map(|(name, cursor)| (name.to_owned(), cursor))
                .collect()
        };
        self.view.read(all).await
    }

    /// Moves the cursor of that name to `to`, or makes one there, if `expect` holds where the move comes to lie in the log.
    /// Returns that position, which is the cursor's version then, and what became of it.
    ///
    /// # Errors
    /// [`DecideError`]. A conflict is no error.
    pub async fn move_to(
        &self,
        name: &str,
        to: Position,
        expect: If,
    ) -> Result<(Position, Outcome), DecideError> {
        let name = checked(name)?;
        self.view.update(&Update::Move { name, to, expect }).await
    }

    /// Removes the cursor of that name if `expect` holds, as [`Cursors::move_to`] does. One that is not there is removed.
    ///
    /// # Errors
    /// [`DecideError`]. A conflict is no error.
    pub async fn remove(&self, name: &str, expect: If) -> Result<(Position, Outcome), DecideError> {
        let name = checked(name)?;
        self.view.update(&Update::Remove { name, expect }).await
    }
}

fn checked(name: &str) -> Result<String, UpdateError> {
    if name.len() > NAME_BYTES_MAX {
        return Err(UpdateError::TooLarge {
            what: "a cursor's name",
            asked: name.len(),
            limit: NAME_BYTES_MAX,
        });
    }
    Ok(name.to_owned())
}

#[cfg(test)]
mod tests {
    use milonga_wire::Role;

    use super::*;
    use crate::testing::Cluster;

    fn at(position: u64, version: u64) -> Cursor {
        let (position, version) = (Position(position), Position(version));
        Cursor { position, version }
    }

    /// Of two that share a cursor one moves it, and the other is told where it is.
    #[tokio::test(start_paused = true)]
    async fn the_first_of_a_group_to_move_a_cursor_wins() {
        let cluster = Cluster::new(1, 2, 1);
        let [one, other] =
            [0, 1].map(|_| Cursors::open(&Objects::new(&cluster.client(Role::Writer))));
        let moved = one.move_to("c", Position(7), If::Absent).await.unwrap();
        assert_eq!(moved, (Position(0), Outcome::Done));
        assert_eq!(other.get("c").await.unwrap(), Some(at(7, 0)));

        let expect = If::Version(Position(0));
        let moved = other.move_to("c", Position(9), expect).await.unwrap();
        assert_eq!(moved, (Position(1), Outcome::Done));
        let found = Some(at(9, 1));
        for expect in [expect, If::Absent] {
            let (_, late) = one.move_to("c", Position(8), expect).await.unwrap();
            assert_eq!(late, Outcome::Conflict { found });
            let (_, late) = one.remove("c", expect).await.unwrap();
            assert_eq!(late, Outcome::Conflict { found });
        }
        assert_eq!(one.all().await.unwrap(), [("c".to_owned(), at(9, 1))]);
    }

    /// A cursor goes back, too, and one that is removed is there no more.
    #[tokio::test(start_paused = true)]
    async fn a_cursor_moves_where_it_is_told_and_is_removed() {
        let cluster = Cluster::new(1, 2, 1);
        let cursors = Cursors::open(&Objects::new(&cluster.client(Role::Writer)));
        for to in [9, 3] {
            cursors
                .move_to("c", Position(to), If::Always)
                .await
                .unwrap();
        }
        assert_eq!(cursors.get("c").await.unwrap(), Some(at(3, 1)));
        cursors.remove("c", If::Version(Position(1))).await.unwrap();
        assert_eq!(cursors.get("c").await.unwrap(), None);
        let long = "x".repeat(NAME_BYTES_MAX + 1);
        let refused = cursors.move_to(&long, Position(1), If::Always).await;
        assert!(matches!(
            refused,
            Err(DecideError::Update(UpdateError::TooLarge { .. }))
        ));
    }
}
