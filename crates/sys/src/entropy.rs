//! Randomness from the kernel.

/// Fills an array with random bytes.
///
/// # Panics
///
/// If the kernel has no entropy source, which Linux since 3.17 always has.
#[must_use]
pub fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    let mut filled = 0;
    while filled < N {
        filled +=
            rustix::rand::getrandom(&mut bytes[filled..], rustix::rand::GetRandomFlags::empty())
                .expect("getrandom(2) works on every supported kernel");
    }
    bytes
}
