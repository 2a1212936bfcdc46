//! How patches are varied: field by field, with values that mean something there.

use crate::patch::{Patch, Patches};

/// Numbers that follow from a seed.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u32) -> Self {
        Random(u64::from(seed) << 1 | 1)
    }

    /// The next one (splitmix64).
    pub fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// One below `end`, which is not 0.
    pub fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.number() % end as u64).unwrap()
    }

    pub fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }
}

/// A field that may be changed.
pub struct Field {
    pub unit: u16,
    pub at: usize,
    /// Bytes, at most 8.
    pub len: usize,
    pub value: u64,
}

/// The number at a place, of at most 8 bytes.
pub fn value_at(bytes: &[u8], at: usize, len: usize) -> u64 {
    let mut value = [0; 8];
    value[..len].copy_from_slice(&bytes[at..at + len]);
    u64::from_le_bytes(value)
}

/// Removes a patch, repeats one elsewhere, or changes a field; `likely` are values that occur in such
/// fields.
pub fn vary(
    patches: &mut Patches,
    random: &mut Random,
    field: impl FnOnce(&mut Random) -> Field,
    likely: &[u64],
) {
    let count = patches.list.len();
    match random.below(16) {
        0 if count > 0 => drop(patches.list.remove(random.below(count))),
        1 if count > 0 => {
            let mut again = patches.list[random.below(count)].clone();
            again.unit = field(random).unit;
            patches.list.push(again);
        }
        // As it is in a torn or misplaced block: now and then nothing is sealed.
        2 if count > 0 => {
            patches.list[random.below(count)].seal = u8::try_from(random.below(8)).unwrap()
        }
        _ => {
            let field = field(random);
            let value = new_value(&field, random, likely).to_le_bytes();
            let patch = Patch {
                unit: field.unit,
                at: field.at,
                seal: 0,
                bytes: value[..field.len].to_vec(),
            };
            patches
                .list
                .retain(|other| (other.unit, other.at) != (patch.unit, patch.at));
            patches.list.push(patch);
        }
    }
}

fn new_value(field: &Field, random: &mut Random, likely: &[u64]) -> u64 {
    match random.below(8) {
        0 => field.value.wrapping_add(1),
        1 => field.value.wrapping_sub(1),
        2 => field.value ^ 1 << random.below(64),
        3 => random.pick(&[0, 1, 2, 3, u64::MAX, 1 << 24, 1 << 31, 1 << 40, 1 << 63]),
        4 => random.number(),
        _ => random.pick(likely),
    }
}
