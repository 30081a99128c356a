//! Agreement with ml_dtypes, by the file that `tests/python/formats_golden.py` writes.

use halfbyte_formats::{Element, ScaleFormat, kernel};

const GOLDEN: &str = include_str!("golden/ml_dtypes.csv");

fn float(hex: &str) -> f32 {
    f32::from_bits(u32::from_str_radix(hex, 16).expect("eight hex digits"))
}

fn lines(kind: &str) -> impl Iterator<Item = [&str; 3]> {
    GOLDEN.lines().filter_map(move |line| {
        let fields: Vec<&str> = line.split(',').collect();
        (fields[0] == kind).then(|| [fields[1], fields[2], fields[3]])
    })
}

#[test]
fn every_finite_code_has_the_same_value() {
    let mut seen = 0;
    for [format, code, value] in lines("code") {
        let (code, value) = (u8::from_str_radix(code, 16).unwrap(), float(value));
        seen += 1;
        if format == "e8m0" {
            assert_eq!(ScaleFormat::E8M0.from_byte(code), Some(value));
            assert_eq!(ScaleFormat::E8M0.to_byte(value), Some(code));
            continue;
        }
        let element: Element = format.parse().unwrap();
        assert_eq!(element.value(code).to_bits(), value.to_bits(), "{format} {code:#x}");
        if value != 0.0 {
            let mut encoded = [0];
            kernel::encode(element, 1.0, &[value], &mut encoded);
            assert_eq!(encoded[0], code, "{format} {value}");
        }
    }
    assert_eq!(seen, 16 + 64 + 64 + 254 + 248 + 254);
}

#[test]
fn every_value_is_rounded_alike() {
    let mut seen = 0;
    for [format, x, expected] in lines("round") {
        let element: Element = format.parse().unwrap();
        let mut q = [0.0];
        kernel::fake_quantize(element, 1.0, &[float(x)], &mut q);
        assert_eq!(q[0].to_bits(), float(expected).to_bits(), "{format} {}", float(x));
        seen += 1;
    }
    assert!(seen > 1000);
}
