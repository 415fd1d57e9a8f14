//! The nouns and messages of Milonga, and how they look as bytes.
//!
//! No I/O, no runtime, no clock: plain data, the pure rules about it that every part must agree on
//! (which chain holds a position, who may ask for what, what a certificate of a decision proves), and a
//! total codec. Decisions about state live in the services and the client.
//!
//! - W1 Decoding is total: any bytes give a value or a [`DecodeError`], in bounded memory.
//! - W2 A layout maps every position to exactly one chain ([`Layout::chain_of`]).
//! - W3 Enums on the wire only grow at their end; every frame starts with [`FORMAT_VERSION`].

mod access;
mod codec;
mod entry;
mod identity;
mod layout;
pub mod limits;
mod message;
mod position;
mod refusal;
mod stream;

pub use access::{Access, Caller, Role, admit};
pub use codec::{DecodeError, FORMAT_VERSION, Frame, Payload, decode_head, next_frame};
pub use entry::{EntryHead, Holder, Piece, Session, Stamp};
pub use identity::{Address, ClusterId, Identity, Incarnation, InvalidName, ServerName};
pub use layout::{
    Acceptance, Chain, Decided, InvalidLayout, Layout, Origin, Pieces, Rank, Segment, Server,
    Settings,
};
pub use message::layout::{LayoutReply, LayoutRequest, Promise, Report, Standing};
pub use message::relay::{Brought, Relayed};
pub use message::sequencer::{BootstrapPage, SequencerReply, SequencerRequest, StreamTail, Token};
pub use message::unit::{
    Answer, ConfirmedEnd, Fill, FillOutcome, Held, Sealed, UnitReply, UnitRequest, WriteKind,
    WriteOutcome,
};
pub use message::{Description, Kind, Reply, ReplyHead, Request, RequestHead, Target};
pub use position::{Position, Span, Stripes, Term};
pub use refusal::Refusal;
pub use stream::{Before, StreamId, StreamLink};
