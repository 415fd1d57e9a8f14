//! Streams of bare bytes over the same connections: what a measurement compares calls with.
//!
//! Same socket, certificates, greeting and options as calls have; no frames, no heads, no limits but QUIC's own.

use std::sync::Arc;

use ::bytes::Bytes;
use milonga_wire::Address;

use super::{BindError, CHUNKS, Served, ServerHandle, Transport, why};
use crate::{BoxFuture, CallError, Peer};

/// A server of byte streams.
pub trait ByteService: Send + Sync + 'static {
    /// Serves one stream until it ends.
    fn serve(&self, send: ByteSender, receive: ByteReceiver) -> BoxFuture<'static, ()>;
}

/// The end of a stream that takes bytes. Dropping both ends of a stream closes it.
#[derive(Debug)]
pub struct ByteSender {
    send: quinn::SendStream,
    _connection: quinn::Connection,
}

/// The end of a stream that bytes come from.
#[derive(Debug)]
pub struct ByteReceiver {
    receive: quinn::RecvStream,
    chunks: [Bytes; CHUNKS],
    _connection: quinn::Connection,
}

impl Transport {
    /// Serves streams of bytes at `listen`, as [`Transport::serve`] serves calls.
    ///
    /// # Errors
    /// As [`Transport::serve`].
    pub async fn serve_bytes(
        &self,
        listen: &Address,
        service: Arc<dyn ByteService>,
    ) -> Result<ServerHandle, BindError> {
        self.serve_what(listen, Served::Bytes(service)).await
    }

    /// A stream to a server of bytes, over a connection of its own.
    ///
    /// # Errors
    /// [`CallError::NotSent`].
    pub async fn open_bytes(&self, peer: &Peer) -> Result<(ByteSender, ByteReceiver), CallError> {
        let not_sent = |why: String| CallError::NotSent {
            peer: peer.to_string(),
            why,
        };
        let addresses = super::resolve(&peer.address).await.map_err(not_sent)?;
        let connected = self.0.connect_any(peer, addresses, &Arc::default()).await;
        let (connection, mut streams) = connected.map_err(not_sent)?;
        let (send, receive) = streams.swap_remove(0);
        Ok(halves(connection, send, receive))
    }
}

pub(super) fn halves(
    connection: quinn::Connection,
    send: quinn::SendStream,
    receive: quinn::RecvStream,
) -> (ByteSender, ByteReceiver) {
    let sender = ByteSender {
        send,
        _connection: connection.clone(),
    };
    let receiver = ByteReceiver {
        receive,
        chunks: [const { Bytes::new() }; CHUNKS],
        _connection: connection,
    };
    (sender, receiver)
}

impl ByteSender {
    /// Writes all of `parts`, and empties it.
    ///
    /// # Errors
    /// Why the stream is over.
    pub async fn write(&mut self, parts: &mut Vec<Bytes>) -> Result<(), String> {
        let written = self.send.write_all_chunks(parts).await;
        parts.clear();
        written.map_err(|error| error.to_string())
    }
}

impl ByteReceiver {
    /// Waits for bytes and hands each chunk that has come to `take`. Whether the stream goes on.
    ///
    /// # Errors
    /// Why the stream broke.
    pub async fn read(&mut self, mut take: impl FnMut(Bytes)) -> Result<bool, String> {
        match self.receive.read_chunks(&mut self.chunks).await {
            Ok(Some(count)) => {
                for chunk in &mut self.chunks[..count] {
                    take(std::mem::take(chunk));
                }
                Ok(true)
            }
            Ok(None) => Ok(false),
            Err(quinn::ReadError::ConnectionLost(error)) => Err(why(&error)),
            Err(error) => Err(error.to_string()),
        }
    }
}
