//! The directory: which objects there are, by name.

use std::collections::BTreeMap;

use milonga_wire::{Position, StreamId};
use serde::{Deserialize, Serialize};

use super::error::OpenError;
use super::image::{ImageError, ImageReader, ImageWriter};
use super::{Keys, Object, Objects, Part, Seen, View};

/// Bytes of the longest name.
pub const NAME_BYTES_MAX: usize = 255;

/// An object that has a name.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub struct Listed {
    /// What it is.
    pub kind: String,
    /// The stream that feeds it.
    pub stream: StreamId,
    /// Where it was given its name.
    pub since: Position,
}

/// What changes the directory, as it stands in the log.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub enum Update {
    /// There is an object of that name; if there was none before, a new one of this kind.
    Open {
        /// Its name.
        name: String,
        /// What it is if it is new.
        kind: String,
    },
    /// The name stands for nothing any more. An object that is given it later is a new one.
    Remove {
        /// Its name.
        name: String,
    },
}

/// All objects that have names.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct DirectoryState {
    names: BTreeMap<String, Listed>,
}

impl DirectoryState {
    /// The object of that name.
    pub fn get(&self, name: &str) -> Option<&Listed> {
        self.names.get(name)
    }

    /// All of them, by name.
    pub fn all(&self) -> impl Iterator<Item = (&str, &Listed)> {
        self.names
            .iter()
            .map(|(name, listed)| (name.as_str(), listed))
    }
}

impl Object for DirectoryState {
    const KIND: &'static str = "directory";
    type Update = Update;
    type Outcome = Option<Listed>;

    fn apply(&mut self, since: Position, update: Update) -> Option<Listed> {
        match update {
            Update::Open { name, kind } => {
                // An object that takes the name of one that was removed has a stream of its own.
                let stream = StreamId::of_name(&format!("{kind}/{name}/{since}"));
                let new = || Listed {
                    kind,
                    stream,
                    since,
                };
                Some(self.names.entry(name).or_insert_with(new).clone())
            }
            Update::Remove { name } => self.names.remove(&name),
        }
    }

    fn snapshot(&self, to: &mut ImageWriter) {
        self.names.iter().for_each(|listed| to.write(&listed));
    }

    fn restore(from: &mut ImageReader) -> Result<Self, ImageError> {
        let mut names = BTreeMap::new();
        while let Some((name, listed)) = from.read()? {
            names.insert(name, listed);
        }
        Ok(Self { names })
    }

    fn part(update: &Update) -> Part {
        let (Update::Open { name, .. } | Update::Remove { name }) = update;
        Part::Key(name.clone().into_bytes().into())
    }

    fn seen(&self, part: &Part) -> Option<Seen> {
        Keys::seen(part, |keys| {
            let all = self.names.iter();
            let all = all.filter(|(name, _)| keys.contains(&name.as_bytes().to_vec().into()));
            Seen::all(all.map(|(_, listed)| listed.since))
        })
    }
}

impl Objects {
    fn directory(&self) -> View<DirectoryState> {
        let stream = StreamId::of_name(DirectoryState::KIND);
        let view: View<DirectoryState> = self.host(stream);
        self.keep(view.named());
        view
    }

    /// The object of type `O` that has this name; if none has it, a new one gets it.
    ///
    /// # Errors
    /// [`OpenError`].
    pub async fn open<O: Object>(&self, name: &str) -> Result<View<O>, OpenError> {
        if name.len() > NAME_BYTES_MAX {
            return Err(OpenError::TooLong {
                asked: name.len(),
                limit: NAME_BYTES_MAX,
            });
        }
        if let Some(listed) = self.listed(name).await? {
            return self.host_listed(name, listed);
        }
        let update = Update::Open {
            name: name.to_owned(),
            kind: O::KIND.to_owned(),
        };
        let (position, listed) = self.directory().update(&update).await?;
        self.host_listed(name, listed.ok_or(super::PlayError::Lost(position))?)
    }

    /// The object of type `O` that has this name, if there is one.
    ///
    /// # Errors
    /// [`OpenError`].
    pub async fn find<O: Object>(&self, name: &str) -> Result<Option<View<O>>, OpenError> {
        let listed = self.listed(name).await?;
        listed
            .map(|listed| self.host_listed(name, listed))
            .transpose()
    }

    async fn listed(&self, name: &str) -> Result<Option<Listed>, OpenError> {
        let directory = self.directory();
        // A name never stands for another object unless it was removed, so an old copy that knows it will do, mostly: who
        // removes a name has seen to it that nobody uses it any more.
        let known = directory.read_stale(|names| names.get(name).cloned());
        Ok(match known {
            Some(listed) => Some(listed),
            None => self.listed_now(name).await?,
        })
    }

    fn host_listed<O: Object>(&self, name: &str, listed: Listed) -> Result<View<O>, OpenError> {
        if listed.kind != O::KIND {
            return Err(OpenError::OtherKind {
                name: name.to_owned(),
                asked: O::KIND,
                found: listed.kind,
            });
        }
        Ok(self.host(listed.stream))
    }

    /// The object of that name, once everything acknowledged before this call is known.
    ///
    /// # Errors
    /// [`super::PlayError`].
    pub async fn listed_now(&self, name: &str) -> Result<Option<Listed>, super::PlayError> {
        let find = |names: &DirectoryState| names.get(name).cloned();
        self.directory().read(find).await
    }

    /// All objects that have names, once everything acknowledged before this call is known.
    ///
    /// # Errors
    /// [`super::PlayError`].
    pub async fn all(&self) -> Result<Vec<(String, Listed)>, super::PlayError> {
        let all = |names: &DirectoryState| {
            let all = names.all();
            all.map(|(name, listed)| (name.to_owned(), listed.clone()))
                .collect()
        };
        self.directory().read(all).await
    }

    /// Takes the name from its object, and returns what it was. Nobody must use the object any more: what is written to it from
    /// now on, nobody who opens the name sees.
    ///
    /// # Errors
    /// [`OpenError`].
    pub async fn remove(&self, name: &str) -> Result<Option<Listed>, OpenError> {
        let name = name.to_owned();
        let (_, removed) = self.directory().update(&Update::Remove { name }).await?;
        Ok(removed)
    }
}
