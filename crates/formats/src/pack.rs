//! Packed codes: a little-endian bit stream of n-bit codes, so that 4-bit codes put the first one in the low nibble.
//!
//! Every call starts on a byte boundary and zero-fills its last byte: a matrix is packed row by row.

/// Bytes that `n` codes of `bits` bits take.
pub fn packed_len(bits: u32, n: usize) -> usize {
    // In two parts, so that no count of codes in memory can overflow.
    n / 8 * bits as usize + (n % 8 * bits as usize).div_ceil(8)
}

/// Packs `codes` into `out`, `packed_len(bits, codes.len())` bytes. Bits above the width are dropped.
///
/// # Panics
/// If `out` has another length, or `bits` is not 1 to 8.
pub fn pack(bits: u32, codes: &[u8], out: &mut [u8]) {
    assert!((1..=8).contains(&bits), "codes have 1 to 8 bits, not {bits}");
    assert_eq!(out.len(), packed_len(bits, codes.len()), "packed length of {} codes", codes.len());
    match bits {
        8 => out.copy_from_slice(codes),
        4 => {
            let (pairs, last) = codes.as_chunks::<2>();
            for (byte, pair) in out.iter_mut().zip(pairs) {
                *byte = (pair[0] & 15) | pair[1] << 4;
            }
            if let (Some(byte), Some(&code)) = (out.get_mut(pairs.len()), last.first()) {
                *byte = code & 15;
            }
        }
        _ => {
            // Eight codes fill exactly `bits` bytes.
            let mask = (1u64 << bits) - 1;
            for (bytes, codes) in out.chunks_mut(bits as usize).zip(codes.chunks(8)) {
                let word =
                    codes.iter().rev().fold(0u64, |word, &code| word << bits | (u64::from(code) & mask));
                bytes.copy_from_slice(&word.to_le_bytes()[..bytes.len()]);
            }
        }
    }
}

/// Reads `n` codes of `bits` bits from `bytes` into `out`.
///
/// # Panics
/// If `bytes` is not `packed_len(bits, n)` long, `out` not `n` long, or `bits` not 1 to 8.
pub fn unpack(bits: u32, bytes: &[u8], n: usize, out: &mut [u8]) {
    assert!((1..=8).contains(&bits), "codes have 1 to 8 bits, not {bits}");
    assert_eq!(bytes.len(), packed_len(bits, n), "packed length of {n} codes");
    assert_eq!(out.len(), n, "room for {n} codes");
    match bits {
        8 => out.copy_from_slice(bytes),
        4 => {
            let (pairs, last) = out.as_chunks_mut::<2>();
            for (pair, byte) in pairs.iter_mut().zip(bytes) {
                *pair = [byte & 15, byte >> 4];
            }
            if let (Some(code), Some(byte)) = (last.first_mut(), bytes.last()) {
                *code = byte & 15;
            }
        }
        _ => {
            let mask = (1u64 << bits) - 1;
            for (codes, bytes) in out.chunks_mut(8).zip(bytes.chunks(bits as usize)) {
                let mut word = bytes.iter().rev().fold(0u64, |word, &byte| word << 8 | u64::from(byte));
                for code in codes {
                    *code = (word & mask) as u8;
                    word >>= bits;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nibbles_put_the_first_code_low() {
        let mut out = [0; 2];
        pack(4, &[0x1, 0x2, 0xf], &mut out);
        assert_eq!(out, [0x21, 0x0f]);
    }

    #[test]
    fn other_widths_are_a_little_endian_bit_stream() {
        let mut out = [0; 2];
        pack(3, &[0b001, 0b010, 0b111, 0b100], &mut out);
        assert_eq!(out, [0b1101_0001, 0b0000_1001]);
    }

    #[test]
    fn every_width_and_length_is_read_back() {
        for bits in 1..=8 {
            for n in 0..70 {
                let codes: Vec<u8> =
                    (0..n).map(|i| (i * 37 + 11) as u8 & ((1u16 << bits) - 1) as u8).collect();
                let mut packed = vec![0xff; packed_len(bits, n)];
                pack(bits, &codes, &mut packed);
                assert_eq!(packed.len(), (n * bits as usize).div_ceil(8));
                let mut back = vec![0; n];
                unpack(bits, &packed, n, &mut back);
                assert_eq!(back, codes, "{bits} bits, {n} codes");
                // Unused bits are zero, so equal codes give equal files.
                let used = n * bits as usize % 8;
                assert!(used == 0 || packed.last().is_none_or(|last| last >> used == 0));
            }
        }
    }

    #[test]
    fn stray_high_bits_do_not_leak_into_neighbours() {
        for bits in 1..8 {
            let mut out = vec![0; packed_len(bits, 9)];
            pack(bits, &[0, 0xff, 0, 0, 0, 0, 0, 0xff, 0], &mut out);
            let mut back = [0; 9];
            unpack(bits, &out, 9, &mut back);
            let top = ((1u16 << bits) - 1) as u8;
            assert_eq!(back, [0, top, 0, 0, 0, 0, 0, top, 0]);
        }
    }
}
