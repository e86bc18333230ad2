//! Which keys are written: how many, and how often each.

use fastrand::Rng;

/// Bytes of a key.
pub(crate) const KEY_BYTES: usize = 16;

/// A range of keys, and how often each is written.
#[derive(Clone, Debug)]
pub(crate) struct KeySpace {
    first: u32,
    keys: u32,
    draw: Draw,
}

#[derive(Clone, Debug)]
enum Draw {
    Uniform,
    Zipf(Zipf),
    InTurn,
}

impl KeySpace {
    /// All keys alike, or by Zipf's law where an exponent is given.
    pub(crate) fn new(keys: u32, exponent: Option<f64>) -> Self {
        let zipf = |exponent| Draw::Zipf(Zipf::new(keys, exponent));
        Self {
            first: 0,
            keys,
            draw: exponent.map_or(Draw::Uniform, zipf),
        }
    }

    /// One key after the other.
    pub(crate) fn in_turn(keys: u32) -> Self {
        Self {
            draw: Draw::InTurn,
            ..Self::new(keys, None)
        }
    }

    /// The part of one of several writers, so that no two of them write the same key.
    pub(crate) fn share(&self, writer: u32, writers: u32) -> Self {
        let keys = (self.keys / writers).max(1);
        let draw = match &self.draw {
            Draw::Zipf(zipf) => Draw::Zipf(Zipf::new(keys, zipf.exponent)),
            draw => draw.clone(),
        };
        Self {
            first: self.first + writer * keys,
            keys,
            draw,
        }
    }

    /// The key of a record.
    pub(crate) fn draw(&self, number: u64, random: &mut Rng) -> u32 {
        let key = match &self.draw {
            Draw::Uniform => random.u32(..self.keys),
            Draw::Zipf(zipf) => zipf.rank(random.f64()),
            Draw::InTurn => {
                let key = number % u64::from(self.keys);
                u32::try_from(key).expect("less than the number of keys")
            }
        };
        self.first + key
    }
}

/// The text of a key: 16 hexadecimal digits in random order, so that neighbours in number are not
/// neighbours in the table.
pub(crate) fn text(key: u32) -> [u8; KEY_BYTES] {
    hexadecimal(mix(u64::from(key)))
}

/// The finaliser of SplitMix64: every input has an output of its own.
fn mix(number: u64) -> u64 {
    let mut mixed = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

/// A number as 16 hexadecimal digits.
pub(crate) fn hexadecimal(number: u64) -> [u8; 16] {
    let mut digits = [0; 16];
    for (byte, pair) in number
        .to_be_bytes()
        .into_iter()
        .zip(digits.chunks_exact_mut(2))
    {
        pair[0] = DIGITS[usize::from(byte >> 4)];
        pair[1] = DIGITS[usize::from(byte & 15)];
    }
    digits
}

const DIGITS: &[u8; 16] = b"0123456789abcdef";

/// Ranks by Zipf's law, as in "Quickly generating billion-record synthetic databases" (Gray and
/// others, 1994), which YCSB uses as well.
#[derive(Clone, Debug)]
struct Zipf {
    keys: f64,
    exponent: f64,
    alpha: f64,
    zeta: f64,
    eta: f64,
}

impl Zipf {
    fn new(keys: u32, exponent: f64) -> Self {
        let zeta = |n: u32| {
            (1..=n)
                .map(|rank| f64::from(rank).powf(-exponent))
                .sum::<f64>()
        };
        let (all, two) = (zeta(keys), zeta(keys.min(2)));
        let keys = f64::from(keys);
        Self {
            keys,
            exponent,
            alpha: 1.0 / (1.0 - exponent),
            zeta: all,
            eta: (1.0 - (2.0 / keys).powf(1.0 - exponent)) / (1.0 - two / all),
        }
    }

    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a rank is between zero and the number of keys"
    )]
    fn rank(&self, uniform: f64) -> u32 {
        let scaled = uniform * self.zeta;
        if scaled < 1.0 {
            return 0;
        }
        if scaled < 1.0 + 0.5f64.powf(self.exponent) {
            return 1;
        }
        let rank = self.keys * (self.eta * uniform - self.eta + 1.0).powf(self.alpha);
        rank.min(self.keys - 1.0) as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn key_texts_are_distinct_and_hexadecimal() {
        let texts: std::collections::HashSet<_> = (0..10_000).map(text).collect();
        assert_eq!(texts.len(), 10_000);
        assert!(texts.iter().flatten().all(u8::is_ascii_hexdigit));
        assert_eq!(&hexadecimal(0x12ab), b"00000000000012ab");
    }

    #[test]
    fn zipf_prefers_low_ranks_and_stays_in_range() {
        let space = KeySpace::new(1000, Some(0.99));
        let mut random = Rng::with_seed(1);
        let mut counts = vec![0u32; 1000];
        for _ in 0..100_000 {
            counts[space.draw(0, &mut random) as usize] += 1;
        }
        assert!((10_000..17_000).contains(&counts[0]), "{}", counts[0]);
        assert!(counts[0] > counts[1] && counts[1] > counts[10] && counts[10] > counts[500]);
    }

    fn drawn(space: &KeySpace) -> Vec<u32> {
        let mut random = Rng::with_seed(1);
        let keys: std::collections::BTreeSet<_> = (0..1000)
            .map(|number| space.draw(number, &mut random))
            .collect();
        keys.into_iter().collect()
    }

    #[test]
    fn uniform_draws_and_turns_reach_every_key() {
        let all: Vec<u32> = (0..10).collect();
        assert_eq!(drawn(&KeySpace::new(10, None)), all);
        assert_eq!(drawn(&KeySpace::in_turn(10)), all);
    }

    #[test]
    fn writers_share_keys_without_overlap() {
        let space = KeySpace::new(10, None);
        assert_eq!(drawn(&space.share(0, 2)), [0, 1, 2, 3, 4]);
        assert_eq!(drawn(&space.share(1, 2)), [5, 6, 7, 8, 9]);
    }
}
