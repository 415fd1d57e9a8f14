//! Snapshots in the log: parts as records of no stream, and a manifest, in a stream of its own, that says where they are.
//!
//! ```text
//!  … part 0 … part 1 … update … part 2 … manifest(as of, parts) … update …
//! ```
//! A snapshot counts once its manifest is in the log. Whoever reads one plays the object's stream on from `as of`.

use std::collections::BTreeMap;

use bytes::Bytes;
use futures_util::future::join_all;
use milonga_wire::limits::ENTRY_BYTES_MAX;
use milonga_wire::{Position, Refusal, Role, Span, StreamId};

use super::codec::{self, Chunk, Manifest, Named, Record};
use super::error::{PlayError, UpdateError};
use super::hosted::{Hosted, Kind};
use super::image::{ImageReader, ImageWriter, PART_BYTES};
use super::keeping::Pinned;
use crate::log::Log;
use crate::trouble::Unavailable;

/// Bytes of a record of a part beside the part itself, at most.
const CHUNK_HEAD_BYTES: usize = 64;
/// Parts that are appended with one token.
const APPENDED_AT_ONCE: usize = 4;
/// Parts that are asked for with one read.
const READ_AT_ONCE: usize = 8;
/// Reads of parts under way at once.
const READS: usize = 2;

/// Snapshots of at least this size are pinned while they are read: smaller ones are read within a moment.
const PINNED_BYTES: u64 = 16 << 20;

/// A snapshot that is in the log.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Snapshot {
    /// Where its manifest is.
    pub manifest: Position,
    /// Everything of the object's stream below it is in it.
    pub as_of: Position,
    /// What has to stay in the log for it: from here on.
    pub needs: Position,
    /// Its size.
    pub bytes: u64,
}

/// The stream of an object's manifests.
pub(crate) fn stream_of(object: &Named) -> StreamId {
    StreamId::of_name(&format!("snapshots/{}/{}", object.kind, object.stream))
}

/// Writes `image` into the log.
pub(crate) async fn write(
    log: &Log,
    object: Named,
    as_of: Position,
    is_past: bool,
    image: ImageWriter,
    refers_to: Option<Position>,
) -> Result<Snapshot, UpdateError> {
    let (parts, bytes) = image.finish();
    let crc = crc_of(&parts);
    let written = write_parts(log, &parts).await;
    let (id, chunks) = match written.as_ref().err().and_then(room_in_a_record) {
        // Units may be set to take less.
        Some(room) => write_parts(log, &smaller(&parts, room)).await?,
        None => written?,
    };
    let stream = stream_of(&object);
    let manifest = Manifest {
        object,
        id,
        as_of,
        chunks,
        bytes,
        crc,
        is_past,
        refers_to,
    };
    let needs = manifest.needs();
    let record = codec::manifest(manifest);
    let record = record.map_err(UpdateError::too_large(
        "a manifest of a snapshot",
        ENTRY_BYTES_MAX,
    ))?;
    let manifest = log.append(record, &[stream]).await?;
    Ok(Snapshot {
        manifest,
        as_of,
        needs,
        bytes,
    })
}

async fn write_parts(log: &Log, parts: &[Bytes]) -> Result<([u8; 16], Vec<Position>), UpdateError> {
    let id = log.host().random.id();
    let mut chunks = vec![];
    let mut numbered = (0..).zip(parts);
    loop {
        let some = numbered.by_ref().take(APPENDED_AT_ONCE);
        let records = some.map(|(number, part)| codec::chunk(Chunk { id, number }, part));
        let records: Result<Vec<Bytes>, _> = records.collect();
        let records = records.map_err(UpdateError::too_large(
            "a part of a snapshot",
            ENTRY_BYTES_MAX,
        ))?;
        if records.is_empty() {
            return Ok((id, chunks));
        }
        chunks.extend(log.append_batch(&records, &[]).await?.positions);
    }
}

/// How much of a part fits a record, if it was not written because that is less than one.
fn room_in_a_record(error: &UpdateError) -> Option<usize> {
    match error {
        UpdateError::NotAppended {
            why:
                Unavailable::Refused {
                    refusal: Refusal::TooLarge { limit, .. },
                    ..
                },
        } => {
            let limit = usize::try_from(*limit).ok()?;
            let room = limit.checked_sub(CHUNK_HEAD_BYTES)?;
            (1..PART_BYTES).contains(&room).then_some(room)
        }
        UpdateError::NotAppended { .. }
        | UpdateError::TooLarge { .. }
        | UpdateError::TooMany { .. }
        | UpdateError::Unknown { .. } => None,
    }
}

fn smaller(parts: &[Bytes], room: usize) -> Vec<Bytes> {
    let cut = |part: &Bytes| {
        let part = part.clone();
        let starts = (0..part.len()).step_by(room);
        starts.map(move |start| part.slice(start..part.len().min(start + room)))
    };
    parts.iter().flat_map(cut).collect()
}

fn crc_of(parts: &[Bytes]) -> u32 {
    let mut crc = crc32fast::Hasher::new();
    parts.iter().for_each(|part| crc.update(part));
    crc.finalize()
}

/// The object as its newest snapshot that holds nothing at or above `limit` has it; none if there is no snapshot that can
/// still be read.
pub(crate) async fn newest(
    log: &Log,
    stream: StreamId,
    kind: Kind,
    limit: Position,
) -> Result<Option<Box<dyn Hosted>>, PlayError> {
    let object = Named {
        stream,
        kind: kind.name.to_owned(),
    };
    let mut last = None;
    loop {
        let manifests = manifests(log, &object).await?;
        let newest = manifests.last_key_value().map(|(position, _)| *position);
        if newest == last {
            return Ok(None);
        }
        // What is written while one is read may let that go.
        last = newest;
        let usable = |it: &Manifest| it.as_of <= limit && !it.is_past;
        let mut usable: Vec<_> = manifests.into_iter().filter(|(_, it)| usable(it)).collect();
        // The one that holds most first: a slow writer's manifest may lie behind those of later ones.
        usable.sort_unstable_by_key(|(position, it)| std::cmp::Reverse((it.as_of, *position)));
        if usable.is_empty() {
            return Ok(None);
        }
        for (position, manifest) in usable {
            match read_pinned(log, position, &manifest).await? {
                Some(image) => {
                    let restored = (kind.restored)(manifest.as_of, image);
                    let wrong = |why| PlayError::Snapshot { position, why };
                    return restored.map(Some).map_err(wrong);
                }
                None => {
                    tracing::debug!(%position, "a snapshot that was trimmed or damaged is passed over");
                }
            }
        }
    }
}

/// All snapshots of an object whose manifests can be read, by the position of those.
pub(crate) async fn manifests(
    log: &Log,
    object: &Named,
) -> Result<BTreeMap<Position, Manifest>, PlayError> {
    let stream = stream_of(object);
    let end = log.end_of(&[stream]).await?;
    let span = Span::new(Position::FIRST, end.counter);
    let last = end.streams.first().map(|link| &link.before);
    let mut reader = log.stream_reader(stream, span, last);
    let mut manifests = BTreeMap::new();
    while let Some(entries) = reader.next().await? {
        for entry in entries {
            if let Some(Ok(Record::Manifest(manifest))) =
                entry.payload().map(|bytes| Record::parse(bytes))
                && manifest.object == *object
            {
                manifests.insert(entry.position, manifest);
            }
        }
    }
    Ok(manifests)
}

/// The snapshot whose manifest is at `position`; none if it, or a part of it, is not there any more.
pub(crate) async fn image(log: &Log, position: Position) -> Result<Option<ImageReader>, PlayError> {
    let entry = log.read(position).await?;
    let record = entry.payload().map(|bytes| Record::parse(bytes));
    match record {
        Some(Ok(Record::Manifest(manifest))) => read(log, position, &manifest, None).await,
        Some(_) | None => Ok(None),
    }
}

/// Reads a snapshot, and keeps a large one from being trimmed meanwhile.
async fn read_pinned(
    log: &Log,
    position: Position,
    manifest: &Manifest,
) -> Result<Option<ImageReader>, PlayError> {
    if manifest.bytes < PINNED_BYTES || !log.may(Role::Writer) {
        return read(log, position, manifest, None).await;
    }
    let mut pinned = Pinned::new(log, manifest.needs()).await;
    let image = read(log, position, manifest, Some(&mut pinned)).await;
    pinned.release().await;
    image
}

/// The parts of a snapshot; none if some are missing or are not what the manifest says.
async fn read(
    log: &Log,
    position: Position,
    manifest: &Manifest,
    mut pinned: Option<&mut Pinned>,
) -> Result<Option<ImageReader>, PlayError> {
    let rises = manifest.chunks.windows(2).all(|pair| pair[0] < pair[1]);
    let batch = if rises { READ_AT_ONCE } else { 1 };
    let mut parts = vec![];
    for some in manifest.chunks.chunks(batch * READS) {
        if let Some(pinned) = &mut pinned {
            pinned.renew_if_due().await;
        }
        let reads: Vec<_> = some
            .chunks(batch)
            .map(|positions| log.read_each(positions))
            .collect();
        let read: Result<Vec<_>, _> = join_all(reads).await.into_iter().collect();
        for entry in read?.into_iter().flatten() {
            let Some(bytes) = entry.payload() else {
                return Ok(None);
            };
            match Record::parse(bytes) {
                Ok(Record::Chunk(chunk, part))
                    if chunk.id == manifest.id && chunk.number as usize == parts.len() =>
                {
                    parts.push(bytes.slice_ref(part));
                }
                Ok(_) | Err(_) => return Ok(None),
            }
        }
    }
    let is_whole = parts.len() == manifest.chunks.len() && crc_of(&parts) == manifest.crc;
    if !is_whole {
        tracing::warn!(%position, "a snapshot is not what its manifest says");
    }
    Ok(is_whole.then(|| ImageReader::new(parts)))
}

#[cfg(test)]
mod tests;
