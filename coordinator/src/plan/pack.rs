//! A compact form of tasks' specs. The specs of a phase differ in a number and a hash. So a pack holds the first spec
//! whole, and only the differences of the others.

use std::sync::Arc;

use llink_proto::Task;
use prost::Message;

pub(super) const PACKED_TOGETHER: usize = 256;
/// The number of equal bytes that end a literal run.
const WORTH_COPYING: usize = 8;
/// The offsets that are tried after a difference, since a number of another length moves the bytes that follow it.
const SHIFTS: [isize; 9] = [0, 1, -1, 2, -2, 3, -3, 4, -4];

/// The specs and labels of several tasks, one after another.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pack {
    /// The id, which is unique in this coordinator.
    pub id: u64,
    pub bytes: Box<[u8]>,
}

#[derive(Debug, Clone, Default)]
pub struct Packed {
    pub pack: Arc<Pack>,
    pub at: u32,
}

impl Packed {
    /// Packs specs and labels in their order. The ids of packs are taken from `next`.
    pub fn all<'a>(tasks: impl IntoIterator<Item = (&'a Task, &'a str)>, next: &mut u64) -> Vec<Self> {
        let mut tasks = tasks.into_iter().peekable();
        let mut packed = Vec::new();
        while tasks.peek().is_some() {
            let together: Vec<_> = tasks.by_ref().take(PACKED_TOGETHER).collect();
            let count = together.len();
            packed.extend(Self::places(Pack::of(together), count, next));
        }
        packed
    }

    /// Returns the places of the `count` tasks of a pack. The pack gets the id `next`.
    pub(super) fn places(mut pack: Pack, count: usize, next: &mut u64) -> impl Iterator<Item = Self> + use<> {
        pack.id = *next;
        *next += 1;
        let pack = Arc::new(pack);
        (0..count as u32).map(move |at| Self { pack: pack.clone(), at })
    }

    /// Unpacks the spec and the label. `None` means that the bytes are no pack, or that the index is outside it.
    pub fn read(&self) -> Option<(Task, String)> {
        read(&unpack(&self.pack.bytes, self.at)?)
    }
}

impl Pack {
    /// Packs specs and labels in their order. The pack has no id yet.
    pub(super) fn of<'a>(tasks: impl IntoIterator<Item = (&'a Task, &'a str)>) -> Self {
        let items: Vec<Vec<u8>> = tasks.into_iter().map(|(spec, label)| item(spec, label)).collect();
        Self { id: 0, bytes: pack(&items) }
    }

    /// Returns the specs and labels in their order, up to the first that cannot be read.
    pub fn iter(&self) -> impl Iterator<Item = (Task, String)> {
        let mut bytes = &*self.bytes;
        let first = take(&mut bytes).and_then(|length| bytes.split_off(..length));
        let others = std::iter::from_fn(move || {
            let length = take(&mut bytes)?;
            apply(first?, bytes.split_off(..length)?)
        });
        first.map(<[u8]>::to_vec).into_iter().chain(others).map_while(|item| read(&item))
    }
}

fn read(item: &[u8]) -> Option<(Task, String)> {
    let (length, rest) = item.split_first_chunk()?;
    let (spec, label) = rest.split_at_checked(u32::from_le_bytes(*length) as usize)?;
    Some((Task::decode(spec).ok()?, String::from_utf8(label.to_vec()).ok()?))
}

fn item(spec: &Task, label: &str) -> Vec<u8> {
    let mut item = (spec.encoded_len() as u32).to_le_bytes().to_vec();
    item.extend(spec.encode_to_vec());
    item.extend(label.as_bytes());
    item
}

/// Packs the first item whole and the others as [`difference`] writes them. A length precedes each of them.
fn pack(items: &[Vec<u8>]) -> Box<[u8]> {
    let Some((first, others)) = items.split_first() else {
        return Box::default();
    };
    let mut packed = Vec::new();
    put(&mut packed, first.len());
    packed.extend(first);
    for other in others {
        let difference = difference(first, other);
        put(&mut packed, difference.len());
        packed.extend(difference);
    }
    packed.into()
}

fn unpack(mut bytes: &[u8], at: u32) -> Option<Vec<u8>> {
    let length = take(&mut bytes)?;
    let first = bytes.split_off(..length)?;
    if at == 0 {
        return Some(first.to_vec());
    }
    for _ in 1..at {
        let length = take(&mut bytes)?;
        bytes.split_off(..length)?;
    }
    let length = take(&mut bytes)?;
    apply(first, bytes.split_off(..length)?)
}

/// Encodes `item` as a list of rounds. A round starts with the number of bytes to copy from `first` and the number of
/// literal bytes. The literal bytes follow, and then the shift of the position in `first`.
fn difference(first: &[u8], item: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    let (mut at, mut from) = (0, 0_usize);
    while at < item.len() {
        let same = common(first.get(from..).unwrap_or_default(), &item[at..]);
        (at, from) = (at + same, from + same);
        let literal = at;
        let mut shift = 0;
        while at < item.len() {
            let resumes = |shift: &isize| {
                let from = from.checked_add_signed(*shift).and_then(|from| first.get(from..));
                from.is_some_and(|first| common(first, &item[at..]) >= WORTH_COPYING)
            };
            if let Some(found) = SHIFTS.into_iter().find(resumes) {
                shift = found;
                break;
            }
            (at, from) = (at + 1, from + 1);
        }
        put(&mut out, same);
        put(&mut out, at - literal);
        out.extend(&item[literal..at]);
        // Zigzag encoding keeps small numbers of either sign small.
        put(&mut out, ((shift << 1) ^ (shift >> 63)) as usize);
        from = from.saturating_add_signed(shift);
    }
    out
}

fn apply(first: &[u8], mut difference: &[u8]) -> Option<Vec<u8>> {
    let mut item = Vec::with_capacity(first.len() + 16);
    let mut from = 0_usize;
    while !difference.is_empty() {
        let same = take(&mut difference)?;
        item.extend(first.get(from..)?.get(..same)?);
        let literal = take(&mut difference)?;
        item.extend(difference.split_off(..literal)?);
        let zigzag = take(&mut difference)?;
        let shift = (zigzag >> 1) as isize ^ -((zigzag & 1) as isize);
        from = (from + same + literal).checked_add_signed(shift)?;
        // The position may lie beyond the end of the first item.
        from = from.min(first.len());
    }
    Some(item)
}

fn common(a: &[u8], b: &[u8]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

fn put(out: &mut Vec<u8>, number: usize) {
    prost::encoding::encode_varint(number as u64, out);
}

fn take(bytes: &mut &[u8]) -> Option<usize> {
    usize::try_from(prost::encoding::decode_varint(bytes).ok()?).ok()
}

#[cfg(test)]
mod tests {
    use llink_datasets::role::{Corpus, Role, Side, Tower};
    use llink_proto::settings::EmbedSettings;
    use llink_proto::task::Kind;
    use llink_proto::{Artifact, EmbedShard};

    use super::*;

    fn embed(number: usize) -> (Task, String) {
        let shard = Artifact {
            path: format!("shard/0123456789abcdef/pairs/train/{number}.parquet"),
            rows: 16_384 >> (number % 9),
            bytes: (number * number * 31) as u64,
            sha256: llink_datasets::manifest::sha256_hex(&number.to_le_bytes()),
            ..Artifact::default()
        };
        let kind = Kind::EmbedShard(EmbedShard {
            shard: Some(shard),
            path: format!("embed/0123456789abcdef/embeddings/encoder/train/{number}.parquet"),
            role: Role::Vectors(Tower::Encoder, Corpus::Pairs, Side::Train).into(),
            settings: serde_json::to_string(&EmbedSettings::default()).unwrap(),
            ..EmbedShard::default()
        });
        let task = Task { output_url: "s3://bucket/with/a/long/name".into(), kind: Some(kind) };
        (task, format!("encoder vectors of train/{number}"))
    }

    #[test]
    fn every_spec_comes_out_as_it_went_in_and_takes_little_more_than_its_hash() {
        let tasks: Vec<_> = (0..1_000).map(embed).collect();
        let mut next = 7;
        let packed = Packed::all(tasks.iter().map(|(task, label)| (task, label.as_str())), &mut next);
        assert_eq!(next, 7 + 1_000_usize.div_ceil(PACKED_TOGETHER) as u64);
        for (packed, task) in packed.iter().zip(&tasks) {
            assert_eq!(packed.read().as_ref(), Some(task));
        }
        let mut packs: Vec<&Arc<Pack>> = packed.iter().map(|packed| &packed.pack).collect();
        packs.dedup_by_key(|pack| pack.id);
        let bytes: usize = packs.iter().map(|pack| pack.bytes.len()).sum();
        assert!(bytes < 150 * 1_000, "{bytes}");
    }

    #[test]
    fn specs_that_have_nothing_in_common_are_packed_too() {
        let items: Vec<Vec<u8>> = [&b""[..], b"a", b"something", &[7; 300], b"some", b"omething"].map(Vec::from).into();
        for items in [items.clone(), items.into_iter().rev().collect()] {
            let packed = pack(&items);
            for (at, item) in items.iter().enumerate() {
                assert_eq!(unpack(&packed, at as u32).as_ref(), Some(item), "{at}");
            }
            assert_eq!(unpack(&packed, items.len() as u32), None);
        }
    }

    #[test]
    fn damaged_packs_are_noticed_and_never_panic() {
        let items: Vec<Vec<u8>> = (0..8).map(|i| item(&embed(i).0, "label")).collect();
        let packed = pack(&items);
        for cut in 0..packed.len() {
            let bytes = packed[..cut].into();
            let packed = Packed { pack: Arc::new(Pack { id: 1, bytes }), at: 7 };
            assert_eq!(packed.read(), None, "cut at {cut}");
        }
        for at in 0..packed.len() {
            let mut bytes = packed.clone();
            bytes[at] ^= 0x55;
            let pack = Arc::new(Pack { id: 1, bytes });
            for at in 0..8 {
                let _ = Packed { pack: pack.clone(), at }.read();
            }
        }
    }
}
