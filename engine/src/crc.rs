//! The CRC-32C of two parts put together, from the CRC-32C of each.
//!
//! With the first part's checksum a polynomial over GF(2), appending n bytes multiplies it by x^(8n) modulo the
//! polynomial of CRC-32C. The powers x^(2^k) are a table, so this takes one multiplication per bit set in n.

/// The polynomial, lowest power in the highest bit.
const POLYNOMIAL: u32 = 0x82f6_3b78;
const ONE: u32 = 1 << 31;

/// x^(2^k) for each k.
const POWERS: [u32; 64] = {
    let mut powers = [ONE >> 1; 64];
    let mut k = 1;
    while k < 64 {
        powers[k] = multiply(powers[k - 1], powers[k - 1]);
        k += 1;
    }
    powers
};

const fn multiply(a: u32, mut b: u32) -> u32 {
    let (mut product, mut bit) = (0, ONE);
    while bit != 0 {
        if a & bit != 0 {
            product ^= b;
            if a & (bit - 1) == 0 {
                break;
            }
        }
        bit >>= 1;
        b = if b & 1 == 0 { b >> 1 } else { (b >> 1) ^ POLYNOMIAL };
    }
    product
}

/// CRC-32C of A then B, from theirs and B's length in bytes.
pub(crate) fn combine(a: u32, b: u32, b_bytes: u64) -> u32 {
    let (mut product, mut rest, mut k) = (a, b_bytes, 3);
    while rest != 0 {
        if rest & 1 == 1 {
            product = multiply(POWERS[k], product);
        }
        rest >>= 1;
        k += 1;
    }
    product ^ b
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn combined_parts_equal_the_whole() {
        let bytes: Vec<u8> = (0..100_000u32).map(|i| (i.wrapping_mul(i) >> 7) as u8).collect();
        for at in [0, 1, 2, 3, 7, 8, 4095, 4096, 65_537, 99_999, 100_000] {
            let (a, b) = bytes.split_at(at);
            let combined = combine(crc32c::crc32c(a), crc32c::crc32c(b), b.len() as u64);
            assert_eq!(combined, crc32c::crc32c(&bytes), "split at {at}");
        }
    }

    #[test]
    fn lengths_beyond_32_bits() {
        // Zeros, doubled until there are 2^40 of them, in two ways.
        let (mut zeros, mut len) = (crc32c::crc32c(&[0; 4]), 4u64);
        let quarter = loop {
            zeros = combine(zeros, zeros, len);
            len *= 2;
            if len == 1 << 38 {
                break zeros;
            }
        };
        let half = combine(quarter, quarter, len);
        let three = combine(half, quarter, len);
        assert_eq!(combine(half, half, 2 * len), combine(three, quarter, len));
    }
}
