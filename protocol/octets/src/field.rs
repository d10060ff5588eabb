//! The field: polynomials over GF(2) modulo x⁸ + x⁴ + x³ + x² + 1 (RFC 6330, 5.7.2).

const MODULUS: u16 = 0x11d;

/// The product of two octets.
#[must_use]
pub const fn product(a: u8, b: u8) -> u8 {
    let (mut sum, mut a, mut b) = (0_u16, a as u16, b);
    while b != 0 {
        if b & 1 == 1 {
            sum ^= a;
        }
        a <<= 1;
        if a & 0x100 != 0 {
            a ^= MODULUS;
        }
        b >>= 1;
    }
    // Below 256: both summands always are.
    sum as u8
}

/// The products of an octet with each octet.
#[must_use]
pub fn products(a: u8) -> &'static [u8; 256] {
    &PRODUCTS[usize::from(a)]
}

static PRODUCTS: [[u8; 256]; 256] = {
    let mut all = [[0; 256]; 256];
    let mut a = 0;
    while a < 256 {
        let mut bit = 0;
        while bit < 8 {
            let of_bit = product(a as u8, 1 << bit);
            let mut low = 0;
            while low < 1 << bit {
                all[a][(1 << bit) + low] = all[a][low] ^ of_bit;
                low += 1;
            }
            bit += 1;
        }
        a += 1;
    }
    all
};

/// The octet whose product with `a` is 1; 0 for 0, which has none.
#[must_use]
pub const fn inverse(a: u8) -> u8 {
    INVERSES[a as usize]
}

static INVERSES: [u8; 256] = {
    let mut inverses = [0; 256];
    let mut a = 1_u16;
    while a < 256 {
        // a²⁵⁴, since a²⁵⁵ = 1.
        let (mut result, mut power, mut left) = (1, a as u8, 254);
        while left > 0 {
            if left & 1 == 1 {
                result = product(result, power);
            }
            power = product(power, power);
            left >>= 1;
        }
        inverses[a as usize] = result;
        a += 1;
    }
    inverses
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_the_field_of_the_rfc() {
        // OCT_EXP of RFC 6330, 5.7.3: powers of 2.
        let powers = [1, 2, 4, 8, 16, 32, 64, 128, 29, 58, 116, 232, 205, 135, 19, 38, 76, 152, 45, 90];
        assert!(powers.windows(2).all(|w| product(w[0], 2) == w[1]));
        for a in 0..=255 {
            assert_eq!((product(a, 1), product(a, 0)), (a, 0));
            assert_eq!(product(a, inverse(a)), u8::from(a != 0));
            for b in 0..=255 {
                assert_eq!(product(a, b), products(a)[usize::from(b)]);
                assert_eq!(product(a, b), product(b, a));
                assert_eq!(product(a, b ^ 0x53), product(a, b) ^ product(a, 0x53));
            }
        }
    }
}
