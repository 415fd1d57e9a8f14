//! How `milonga dev restart` and `stop` reach the running `milonga dev`: one line of JSON each way, over a socket in its
//! directory.

use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream as Blocking;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};

use crate::failure::{Code, Failure, Outcome};
use crate::output::json;

/// Unix sockets take no longer paths.
const PATH_BYTES_MAX: usize = 100;

/// What can be asked.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Asked {
    pub(super) verb: Verb,
    pub(super) name: String,
    /// Kill it instead of letting it drain.
    pub(super) kill: bool,
}

#[derive(Copy, Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Verb {
    Restart,
    Stop,
}

/// What comes back.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) enum Answer {
    Done { pid: Option<u32> },
    Refused { text: String, not_found: bool },
}

impl From<Outcome<Option<u32>>> for Answer {
    fn from(outcome: Outcome<Option<u32>>) -> Self {
        match outcome {
            Ok(pid) => Self::Done { pid },
            Err(failure) => Self::Refused {
                text: failure.to_string(),
                not_found: failure.code == Code::NotFound,
            },
        }
    }
}

/// The end that listens.
pub(super) struct Door {
    listener: UnixListener,
}

/// A question with someone waiting for its answer.
pub(super) struct Visit {
    pub(super) asked: Asked,
    stream: UnixStream,
}

impl Door {
    /// Listens in `dir`. The caller holds the directory, so a socket that is there is an old one.
    pub(super) fn open(dir: &Path) -> Outcome<Self> {
        let path = socket(dir);
        match std::fs::remove_file(&path) {
            Err(why) if why.kind() != std::io::ErrorKind::NotFound => {
                return Err(Failure::file(&path, why));
            }
            Ok(()) | Err(_) => {}
        }
        let listener = short(&path, |path| UnixListener::bind(path))?;
        Ok(Self { listener })
    }

    /// The next question that makes sense.
    pub(super) async fn next(&self) -> Visit {
        loop {
            let Ok((mut stream, _)) = self.listener.accept().await else {
                continue;
            };
            let mut line = String::new();
            let read = BufReader::new(&mut stream).read_line(&mut line).await;
            if let (Ok(_), Ok(asked)) = (read, serde_json::from_str(&line)) {
                return Visit { asked, stream };
            }
        }
    }
}

impl Visit {
    /// Whoever left does not need an answer.
    pub(super) async fn answer(mut self, answer: &Answer) {
        let line = json(answer) + "\n";
        let _ = self.stream.write_all(line.as_bytes()).await;
    }
}

/// Asks the `milonga dev` that runs on `dir`.
pub(super) fn ask(dir: &Path, asked: &Asked) -> Outcome<Option<u32>> {
    use std::io::{BufRead, BufReader, Write};
    let nobody = |why: &dyn std::fmt::Display| {
        Failure::failed(format!(
            "no `milonga dev` runs on {} ({why}); expected one; try `milonga dev --dir {}`",
            dir.display(),
            dir.display()
        ))
    };
    let mut stream =
        short(&socket(dir), |path| Blocking::connect(path)).map_err(|failure| nobody(&failure))?;
    let mut line = json(asked) + "\n";
    stream
        .write_all(line.as_bytes())
        .map_err(|why| nobody(&why))?;
    line.clear();
    BufReader::new(stream)
        .read_line(&mut line)
        .map_err(|why| nobody(&why))?;
    match serde_json::from_str(&line) {
        Ok(Answer::Done { pid }) => Ok(pid),
        Ok(Answer::Refused {
            text,
            not_found: true,
        }) => Err(Failure::new(Code::NotFound, text)),
        Ok(Answer::Refused { text, .. }) => Err(Failure::failed(text)),
        Err(_) => Err(nobody(&"it ended before it answered")),
    }
}

fn socket(dir: &Path) -> PathBuf {
    dir.join("dev.sock")
}

/// Uses a path that may be too long for a socket through its folder's descriptor.
fn short<T>(path: &Path, act: impl FnOnce(&Path) -> std::io::Result<T>) -> Outcome<T> {
    let failed = |why| Failure::file(path, why);
    if path.as_os_str().len() <= PATH_BYTES_MAX {
        return act(path).map_err(failed);
    }
    let (Some(folder), Some(name)) = (path.parent(), path.file_name()) else {
        return act(path).map_err(failed);
    };
    let folder = std::fs::File::open(folder).map_err(failed)?;
    let through = PathBuf::from(format!("/proc/self/fd/{}", folder.as_raw_fd()));
    act(&through.join(name)).map_err(failed)
}
