//! Sizes: how they are given, and how they are written.
//!
//! Both follow GNU: `K`, `M`, … and `KiB`, `MiB`, … are powers of 1024, `kB`, `MB`, … powers of
//! 1000, and whatever does not fit a unit exactly is rounded up, so that nothing that occupies
//! space is shown as none. Fractions are an addition: `1.5G`.

/// `E` is the largest power of 1024 that 64 bits hold; scaled output goes on to `Z` for sums.
const LETTERS: &[u8] = b"KMGTPEZY";

/// A limit as `--threshold` takes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Threshold {
    /// Show what is at least this large.
    AtLeast(u64),
    /// Show what is at most this large.
    AtMost(u64),
}

impl Threshold {
    pub(crate) fn admits(self, size: u64) -> bool {
        match self {
            Self::AtLeast(limit) => size >= limit,
            Self::AtMost(limit) => size <= limit,
        }
    }
}

/// How numbers of bytes are written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum SizeFormat {
    /// With the unit that fits: `4.0K`.
    Human,
    /// The same in powers of 1000: `4.1k`.
    Si,
    /// The same with the names of the powers of 1024: `4.0KiB`.
    Binary,
    /// In a fixed unit, with its name if it was given without a number (`-B M`).
    Unit { bytes: u64, suffix: String },
    /// `0x1000`.
    Hex,
}

impl SizeFormat {
    pub(crate) fn unit(bytes: u64) -> Self {
        Self::Unit { bytes, suffix: String::new() }
    }

    pub(crate) fn write(&self, size: u64) -> String {
        match self {
            Self::Human => scaled(size, 1024, |letter| char::from(letter).to_string()),
            Self::Si => scaled(size, 1000, |letter| si_letter(letter).to_string()),
            Self::Binary => {
                let named = scaled(size, 1024, |letter| format!("{}i", char::from(letter)));
                format!("{named}B")
            }
            Self::Unit { bytes, suffix } => {
                format!("{}{suffix}", size.div_ceil((*bytes).max(1)))
            }
            Self::Hex => format!("{size:#x}"),
        }
    }
}

/// The small k is the one that the SI has.
fn si_letter(letter: u8) -> char {
    if letter == b'K' { 'k' } else { char::from(letter) }
}

/// One decimal below ten, none above, always rounded up.
fn scaled(size: u64, base: u64, name: impl Fn(u8) -> String) -> String {
    let (size, base) = (u128::from(size), u128::from(base));
    if size < base {
        return size.to_string();
    }
    let mut scale = 1;
    let mut letter = 0;
    for candidate in LETTERS {
        if size < scale * base {
            break;
        }
        scale *= base;
        letter = *candidate;
    }
    let tenths = (size * 10).div_ceil(scale);
    if tenths < 100 {
        return format!("{}.{}{}", tenths / 10, tenths % 10, name(letter));
    }
    let whole = size.div_ceil(scale);
    if whole == base {
        // Rounded up into the next unit.
        let next = LETTERS.iter().skip_while(|known| **known != letter).nth(1);
        return format!("1.0{}", name(*next.unwrap_or(&b'Y')));
    }
    format!("{whole}{}", name(letter))
}

/// A number with an optional fraction and unit, in bytes. No fraction of a byte: it is dropped.
pub(crate) fn parse_size(text: &str) -> Result<u64, String> {
    let digits_end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(digits_end);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() && fraction.is_empty() {
        return Err("a number with an optional unit is needed, such as 512, 10K, 1.5GiB".to_owned());
    }
    if fraction.contains('.') {
        return Err("a number has one point at most".to_owned());
    }
    let scale = u128::from(parse_unit(unit)?.0);
    let too_large = || "larger than 16 EiB".to_owned();
    let whole: u128 = match whole {
        "" => 0,
        digits => digits.parse().map_err(|_overflow| too_large())?,
    };
    // Beyond 19 digits nothing of a 64-bit number is left.
    let fraction = &fraction[..fraction.len().min(19)];
    let mut part = 0_u128;
    let mut divisor = 1_u128;
    for digit in fraction.bytes() {
        part = part * 10 + u128::from(digit - b'0');
        divisor *= 10;
    }
    let bytes = whole
        .checked_mul(scale)
        .and_then(|bytes| bytes.checked_add(part * scale / divisor))
        .ok_or_else(too_large)?;
    u64::try_from(bytes).map_err(|_overflow| too_large())
}

/// The bytes of a unit, and how it is written behind a number.
fn parse_unit(unit: &str) -> Result<(u64, String), String> {
    let unknown =
        || format!("'{unit}' is not a unit: K, M, G, T, P, E (or KiB, …) and kB, MB, … are known");
    let mut characters = unit.chars();
    let Some(first) = characters.next() else { return Ok((1, String::new())) };
    let rest = characters.as_str();
    if matches!(first, 'B' | 'c') && rest.is_empty() {
        return Ok((1, "B".to_owned()));
    }
    let letter = first.to_ascii_uppercase();
    let power =
        LETTERS.iter().position(|known| char::from(*known) == letter).ok_or_else(unknown)?;
    let (base, written) = match rest {
        "" => (1024_u64, letter.to_string()),
        "iB" | "ib" | "i" => (1024, format!("{letter}iB")),
        "B" | "b" => (1000, format!("{}B", if letter == 'K' { 'k' } else { letter })),
        _ => return Err(unknown()),
    };
    let power = u32::try_from(power + 1).map_err(|_overflow| unknown())?;
    let bytes = base.checked_pow(power).ok_or_else(|| format!("{unit} is more than 16 EiB"))?;
    Ok((bytes, written))
}

/// What `--block-size` takes: a size, a unit alone (then it is written behind the numbers), or
/// `human-readable` and `si`.
pub(crate) fn parse_block_size(text: &str) -> Result<SizeFormat, String> {
    match text {
        "human" | "human-readable" => return Ok(SizeFormat::Human),
        "si" => return Ok(SizeFormat::Si),
        _ => {}
    }
    if text.starts_with(|c: char| c.is_ascii_alphabetic()) {
        let (bytes, suffix) = parse_unit(text)?;
        return Ok(SizeFormat::Unit { bytes, suffix });
    }
    match parse_size(text)? {
        0 => Err("a block has at least one byte".to_owned()),
        bytes => Ok(SizeFormat::unit(bytes)),
    }
}

/// What `--threshold` takes: with a minus sign, an upper limit.
pub(crate) fn parse_threshold(text: &str) -> Result<Threshold, String> {
    match text.strip_prefix('-') {
        None => Ok(Threshold::AtLeast(parse_size(text.strip_prefix('+').unwrap_or(text))?)),
        // As du: it would not be told from 0.
        Some(limit) => match parse_size(limit)? {
            0 => Err("-0 is no limit".to_owned()),
            limit => Ok(Threshold::AtMost(limit)),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn sizes_are_read_in_both_systems_with_fractions() {
        for (text, bytes) in [
            ("0", 0),
            ("7", 7),
            ("7B", 7),
            ("1k", 1024),
            ("1K", 1024),
            ("1KiB", 1024),
            ("1kB", 1000),
            ("1KB", 1000),
            ("1.5K", 1536),
            (".5M", 1 << 19),
            ("2.M", 2 << 20),
            ("3MB", 3_000_000),
            ("1E", 1 << 60),
            ("0.9999999999999999999999999K", 1023),
        ] {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
        for text in ["", ".", "K", "1.2.3", "1X", "1KBB", "-1", "16E", "99999999999999999999", "1Y"]
        {
            assert!(parse_size(text).is_err(), "{text}");
        }
    }

    #[test]
    fn sizes_are_rounded_up_as_gnu_does() {
        let human = |size| SizeFormat::Human.write(size);
        for (size, text) in [
            (0, "0"),
            (1, "1"),
            (1023, "1023"),
            (1024, "1.0K"),
            (1025, "1.1K"),
            (10_137, "9.9K"),
            (10_138, "10K"),
            (10_240, "10K"),
            (10_241, "11K"),
            (1_047_552, "1023K"),
            (1_047_553, "1.0M"),
            (u64::MAX, "16E"),
        ] {
            assert_eq!(human(size), text, "{size}");
        }
        assert_eq!(SizeFormat::Si.write(999_001), "1.0M");
        assert_eq!(SizeFormat::Si.write(4096), "4.1k");
        assert_eq!(SizeFormat::Binary.write(4096), "4.0KiB");
        assert_eq!(SizeFormat::Binary.write(12), "12B");
        assert_eq!(SizeFormat::Hex.write(4096), "0x1000");
        assert_eq!(SizeFormat::unit(1 << 20).write(1), "1");
    }

    #[test]
    fn a_unit_alone_is_written_behind_the_number() {
        let written = |unit: &str| parse_block_size(unit).unwrap().write(5_000_000);
        assert_eq!(written("1M"), "5");
        assert_eq!(written("M"), "5M");
        assert_eq!(written("MiB"), "5MiB");
        assert_eq!(written("MB"), "5MB");
        assert_eq!(written("kB"), "5000kB");
        assert_eq!(written("si"), "5.0M");
        assert!(parse_block_size("0").is_err());
    }

    #[test]
    fn thresholds_have_two_directions() {
        assert_eq!(parse_threshold("1K"), Ok(Threshold::AtLeast(1024)));
        assert_eq!(parse_threshold("-1K"), Ok(Threshold::AtMost(1024)));
        assert!(parse_threshold("-0").is_err());
    }

    proptest! {
        #[test]
        fn no_text_makes_the_parsers_panic(text in any::<String>()) {
            drop(parse_size(&text));
            drop(parse_block_size(&text));
            drop(parse_threshold(&text));
        }

        #[test]
        fn plausible_texts_neither(text in "-?[0-9.]{0,45}[kKMGTPEZYiBb]{0,3}") {
            drop(parse_size(&text));
            drop(parse_block_size(&text));
            drop(parse_threshold(&text));
        }

        #[test]
        fn every_size_is_written_and_never_as_less(size in any::<u64>()) {
            for format in [SizeFormat::Human, SizeFormat::Binary] {
                let text = format.write(size);
                let text = text.trim_end_matches('B').trim_end_matches('i');
                // What is written as 16E is one byte too large to be read.
                if let Ok(read) = parse_size(text) {
                    prop_assert!(read >= size || text.contains('.'), "{} as {}", size, text);
                }
            }
        }
    }
}
