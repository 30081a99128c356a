//! Which way up an image is, from the metadata that Pillow's `ImageOps.exif_transpose` looks at.

/// The orientation of EXIF data (a TIFF header and its first directory), if it says one.
fn exif(data: &[u8]) -> Option<u32> {
    let data = data.strip_prefix(b"Exif\0\0").unwrap_or(data);
    let little = match data.get(..4)? {
        b"II*\0" => true,
        b"MM\0*" => false,
        _ => return None,
    };
    let number = |at: usize, bytes: usize| -> Option<u32> {
        let bytes = data.get(at..at.checked_add(bytes)?)?;
        let join = |n: u32, &b: &u8| n << 8 | u32::from(b);
        Some(if little { bytes.iter().rev().fold(0, join) } else { bytes.iter().fold(0, join) })
    };
    let directory = number(4, 4)? as usize;
    let entries = number(directory, 2)? as usize;
    let entry = |i: usize| directory + 2 + 12 * i;
    // A short is the left half of the value's four bytes.
    let found = (0..entries).map(entry).find(|&at| number(at, 2) == Some(0x0112))?;
    let size = match number(found + 2, 2)? {
        3 => 2,
        4 => 4,
        _ => return None,
    };
    number(found + 8, size)
}

/// The orientation of an XMP packet.
fn xmp(data: &[u8]) -> Option<u32> {
    let name = b"tiff:Orientation";
    (0..data.len()).filter(|&at| data[at..].starts_with(name)).find_map(|at| {
        let rest = &data[at + name.len()..];
        let rest = rest.strip_prefix(b"=\"").or_else(|| rest.strip_prefix(b">"))?;
        rest.first().filter(|c| c.is_ascii_digit()).map(|c| u32::from(c - b'0'))
    })
}

/// The EXIF data of a PNG's text chunk "Raw profile type exif": a name, a length, lines of hexadecimal digits.
pub(super) fn raw_profile(text: &str) -> Option<Vec<u8>> {
    let digits: String = text.split('\n').skip(3).collect();
    let byte = |i: usize| u8::from_str_radix(digits.get(i..i + 2)?, 16).ok();
    (0..digits.len()).step_by(2).map(byte).collect()
}

/// The orientation of an image with these metadata: 1 where they say none.
pub(super) fn orientation(exif_data: Option<&[u8]>, xmp_data: Option<&[u8]>) -> u32 {
    exif_data.and_then(exif).or_else(|| xmp_data.and_then(xmp)).unwrap_or(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_byte_orders_are_read_and_nonsense_is_none() {
        let big = b"Exif\0\0MM\0*\0\0\0\x08\0\x02\x01\x0f\0\x02\0\0\0\x01\0\0\0\0\x01\x12\0\x03\0\0\0\x01\0\x06\0\0";
        assert_eq!(exif(big), Some(6));
        let little = b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x08\0\0\0";
        assert_eq!(exif(little), Some(8));
        for length in 0..little.len() - 3 {
            assert_eq!(exif(&little[..length]), None, "{length}");
        }
        assert_eq!(exif(b"II*\0\xff\xff\xff\xff"), None);
        assert_eq!(orientation(None, Some(b"<x tiff:Orientation=\"3\"/>")), 3);
        assert_eq!(orientation(None, Some(b"<tiff:Orientation>7</tiff:Orientation>")), 7);
        assert_eq!(orientation(Some(little), Some(b"tiff:Orientation=\"3\"")), 8);
        assert_eq!(orientation(Some(b"?"), None), 1);
    }

    #[test]
    fn a_raw_profile_is_hexadecimal() {
        assert_eq!(raw_profile("\nexif\n   4\n4d4d\n002a\n").as_deref(), Some(&b"MM\0*"[..]));
        assert_eq!(raw_profile("\nexif\n 1\nx?\n"), None);
    }
}
