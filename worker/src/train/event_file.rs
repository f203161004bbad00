//! TensorBoard event files, which are TFRecords of `Event` messages with scalars.
//!
//! No crate fits. `tensorboard-rs` panics when the disk is full and brings `image` 0.23 and `protobuf` 2. `tboard`
//! needs a protoc to build, and `tfrecord` brings prost 0.12 and `num` for one framing. The messages below are the
//! parts of TensorFlow's `event.proto` and `summary.proto` that scalars need, with the same field numbers.

use prost::Message;

#[derive(Clone, PartialEq, Message)]
struct Event {
    /// The seconds since the Unix epoch.
    #[prost(double, tag = "1")]
    wall_time: f64,
    #[prost(int64, tag = "2")]
    step: i64,
    #[prost(oneof = "What", tags = "3, 5")]
    what: Option<What>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
enum What {
    #[prost(string, tag = "3")]
    FileVersion(String),
    #[prost(message, tag = "5")]
    Summary(Summary),
}

#[derive(Clone, PartialEq, Message)]
struct Summary {
    #[prost(message, repeated, tag = "1")]
    value: Vec<SummaryValue>,
}

#[derive(Clone, PartialEq, Message)]
struct SummaryValue {
    #[prost(string, tag = "1")]
    tag: String,
    #[prost(float, tag = "2")]
    simple_value: f32,
}

/// Returns the first record of an event file.
pub fn opening(wall_time: f64) -> Vec<u8> {
    framed(&Event { wall_time, step: 0, what: Some(What::FileVersion("brain.Event:2".into())) })
}

/// Returns the scalars of one step as a record.
pub fn scalars(wall_time: f64, step: u64, scalars: &[(String, f64)]) -> Vec<u8> {
    let value = |(tag, value): &(String, f64)| SummaryValue { tag: tag.clone(), simple_value: *value as f32 };
    framed(&Event {
        wall_time,
        step: i64::try_from(step).unwrap_or(i64::MAX),
        what: Some(What::Summary(Summary { value: scalars.iter().map(value).collect() })),
    })
}

/// Returns a record: length, its checksum, message, its checksum, all little-endian.
fn framed(event: &Event) -> Vec<u8> {
    let message = event.encode_to_vec();
    let length = (message.len() as u64).to_le_bytes();
    let mut record = Vec::with_capacity(message.len() + 16);
    record.extend(length);
    record.extend(masked_checksum(&length).to_le_bytes());
    record.extend(&message);
    record.extend(masked_checksum(&message).to_le_bytes());
    record
}

/// Returns the CRC-32C, rotated and shifted as in TFRecords. The change protects checksums of data that hold checksums.
fn masked_checksum(bytes: &[u8]) -> u32 {
    crc32c::crc32c(bytes).rotate_right(15).wrapping_add(0xa282_ead8)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_framed_as_tensorflow_frames_them() {
        // TensorFlow's own crc32c tests have this value for 32 zero bytes.
        assert_eq!(crc32c::crc32c(&[0; 32]), 0x8a91_36aa);
        let record = scalars(1.5, 42, &[("loss".into(), 0.5), ("seconds/total".into(), 2.0)]);
        let length = u64::from_le_bytes(record[..8].try_into().unwrap()) as usize;
        assert_eq!(record.len(), 16 + length);
        let message = &record[12..12 + length];
        assert_eq!(record[8..12], masked_checksum(&record[..8]).to_le_bytes());
        assert_eq!(record[12 + length..], masked_checksum(message).to_le_bytes());
        let event = Event::decode(message).unwrap();
        assert_eq!((event.wall_time, event.step), (1.5, 42));
        let Some(What::Summary(summary)) = event.what else { panic!("no summary") };
        assert_eq!(summary.value[1].tag, "seconds/total");
        assert_eq!(summary.value[0].simple_value, 0.5);
        // The field wall_time (double, field 1) comes first, then step.
        assert_eq!(message[0], 0x09);
        assert_eq!(message[9..11], [0x10, 42]);
    }
}
