//! The CRC-32C of two parts put together, from the CRC-32C of each.
//!
//! With the first part's checksum a polynomial over GF(2), appending n bytes multiplies it by x^(8n) modulo the
//! polynomial of CRC-32C. The powers for each byte of n are a table, so this takes one multiplication per byte of n.

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

/// x^(8 b 256^k) for each byte b at place k of a length. Lengths fit 48 bits, as on disk.
static SHIFTS: [[u32; 256]; 6] = {
    let mut shifts = [[ONE; 256]; 6];
    let mut k = 0;
    while k < 6 {
        let mut b = 1;
        while b < 256 {
            shifts[k][b] = multiply(shifts[k][b - 1], POWERS[3 + 8 * k]);
            b += 1;
        }
        k += 1;
    }
    shifts
};

/// Without branches: which bits are set cannot be foreseen, and a wrong guess costs as much as all the rest.
const fn multiply(mut a: u32, mut b: u32) -> u32 {
    let (mut product, mut bit) = (0, 0);
    while bit < u32::BITS {
        product ^= b & ((a as i32) >> 31) as u32;
        a <<= 1;
        b = (b >> 1) ^ (POLYNOMIAL & (b & 1).wrapping_neg());
        bit += 1;
    }
    product
}

/// CRC-32C of A then B, from theirs and B's length in bytes.
pub(crate) fn combine(a: u32, b: u32, b_bytes: u64) -> u32 {
    let (mut product, mut rest) = (a, b_bytes);
    for shifts in &SHIFTS {
        if product == 0 || rest == 0 {
            break;
        }
        if rest & 0xff != 0 {
            product = multiply(shifts[(rest & 0xff) as usize], product);
        }
        rest >>= 8;
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
