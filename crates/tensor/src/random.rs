//! Numbers drawn by a seed, the same on every machine.

/// SplitMix64's finaliser (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014): 64 bits that look
/// random, a different word for every `x`.
pub fn mix(x: u64) -> u64 {
    let x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_words_are_those_of_splitmix64() {
        // The first outputs for the seed 1234567, as published with the reference implementation.
        let step = 0x9e37_79b9_7f4a_7c15u64;
        let words = [6_457_827_717_110_365_317u64, 3_203_168_211_198_807_973, 9_817_491_932_198_370_423];
        for (i, word) in words.into_iter().enumerate() {
            assert_eq!(super::mix(1_234_567 + step.wrapping_mul(i as u64)), word);
        }
    }
}
