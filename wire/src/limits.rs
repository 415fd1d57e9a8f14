//! Every bound that both ends of a connection must agree on. Meeting one is a typed answer, never a truncation.

/// Bytes of the largest frame, its length prefix not counted.
pub const FRAME_BYTES_MAX: usize = 16 << 20;
/// Bytes of the largest frame header (the postcard part).
pub const HEAD_BYTES_MAX: usize = 4 << 20;
/// Bytes of the largest record.
pub const ENTRY_BYTES_MAX: usize = 1 << 20;
/// Records in one run, and so in one token.
pub const RUN_RECORDS_MAX: u32 = 16_384;
/// Payload bytes in one piece.
pub const PIECE_BYTES_MAX: usize = 8 << 20;
/// Pieces in one write.
pub const PIECES_MAX: usize = 4_096;
/// Spans in one read or fill.
pub const SPANS_MAX: usize = 4_096;
/// Payload bytes that one read may ask for.
pub const READ_BYTES_MAX: u32 = 8 << 20;
/// Answers in one reply to a read.
pub const READ_ANSWERS_MAX: usize = 16_384;
/// Streams that one entry may name.
pub const STREAMS_PER_ENTRY_MAX: usize = 64;
/// K: how many earlier positions of each stream an entry carries.
pub const BACKPOINTERS: usize = 4;
/// Stream tails in one page.
pub const STREAM_TAILS_PAGE_MAX: u32 = 4_096;
/// Streams that a sequencer remembers at most. A log unit remembers more, trimmed ones too, before it drops any: so a
/// sequencer that is told of all that a unit remembers knows, by having to drop some itself, that they may not be all.
pub const STREAMS_MAX: u32 = 1 << 20;
/// How far above the larger of its highest position and the announced segment start a unit takes a write.
pub const WINDOW_POSITIONS: u64 = 1 << 24;
/// Positions that one fill request may cover.
pub const FILL_POSITIONS_MAX: u64 = 65_536;
/// Servers that one layout may name.
pub const SERVERS_MAX: usize = 4_096;
/// Units that a layout remembers to have left.
pub const LEFT_MAX: usize = 64;
/// Segments that one layout may have.
pub const SEGMENTS_MAX: usize = 4_096;
/// The smallest stripe width: narrower stripes would scatter runs and cost the units' indexes more memory.
pub const STRIPE_WIDTH_MIN: u32 = 1;
/// The largest stripe width.
pub const STRIPE_WIDTH_MAX: u32 = 1 << 20;
/// Bytes of text in a refusal, a report or a layout's origin.
pub const TEXT_BYTES_MAX: usize = 1_024;
