//! Numbers as people read them.

/// `1234567` as `1.2 MB`.
pub fn bytes(n: u64) -> String {
    let units = ["B", "kB", "MB", "GB", "TB"];
    let mut value = n as f64;
    let mut unit = 0;
    while value >= 999.95 && unit + 1 < units.len() {
        value /= 1000.0;
        unit += 1;
    }
    if unit == 0 { format!("{n} B") } else { format!("{value:.1} {}", units[unit]) }
}

/// `1234567` as `1,234,567`.
pub fn thousands(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// `754.2` as `12 min 34 s`.
pub fn duration(seconds: f64) -> String {
    let whole = seconds.round().max(0.0) as u64;
    match whole {
        0..10 => format!("{seconds:.1} s"),
        10..120 => format!("{whole} s"),
        120..7200 => format!("{} min {} s", whole / 60, whole % 60),
        _ => format!("{} h {} min", whole / 3600, whole % 3600 / 60),
    }
}

/// Rounded to so many significant digits, never with an exponent between a millionth and a trillion: `0.01235`, `12,346`.
pub fn significant(value: f64, digits: usize) -> String {
    if value == 0.0 || !value.is_finite() {
        return if value == 0.0 { "0".into() } else { value.to_string() };
    }
    let exponent = value.abs().log10().floor() as i32;
    if !(-6..12).contains(&exponent) {
        return format!("{value:.*e}", digits.saturating_sub(1));
    }
    let decimals = (digits as i32 - 1 - exponent).max(0) as usize;
    let text = format!("{value:.decimals$}");
    match text.split_once('.') {
        Some(_) => text,
        None if value >= 1000.0 => thousands(value.round() as u64),
        None => text,
    }
}

/// A share as `1.23 %`, with three significant digits.
pub fn percent(share: f64) -> String {
    format!("{} %", significant(100.0 * share, 3))
}

/// Counts of parameters: `134.5 M`.
pub fn millions(n: u64) -> String {
    match n {
        0..1_000_000 => format!("{} k", significant(n as f64 / 1e3, 3)),
        1_000_000..1_000_000_000 => format!("{} M", significant(n as f64 / 1e6, 4)),
        _ => format!("{} B", significant(n as f64 / 1e9, 4)),
    }
}

/// `-3` as `2⁻³`, and 0 as `1`.
pub fn power_of_two(exponent: i32) -> String {
    if exponent == 0 {
        return "1".into();
    }
    let raised = |c| match c {
        '-' => '⁻',
        '1' => '¹',
        '2' => '²',
        '3' => '³',
        c => char::from_u32(u32::from('⁰') + u32::from(c) - u32::from('0')).unwrap_or(c),
    };
    std::iter::once('2').chain(exponent.to_string().chars().map(raised)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_read_well() {
        assert_eq!(
            (bytes(999), bytes(1000), bytes(999_960)),
            ("999 B".into(), "1.0 kB".into(), "1.0 MB".into())
        );
        assert_eq!(
            (thousands(7), thousands(1234), thousands(1_234_567)),
            ("7".into(), "1,234".into(), "1,234,567".into())
        );
        assert_eq!(
            (duration(0.53), duration(75.0), duration(754.2)),
            ("0.5 s".into(), "75 s".into(), "12 min 34 s".into())
        );
        let three = |v| significant(v, 3);
        assert_eq!(
            [three(0.0), three(0.012_345), three(7.0), three(12_345.6)],
            ["0", "0.0123", "7.00", "12,346"]
        );
        assert_eq!([three(1.5e-9), three(f64::INFINITY)], ["1.50e-9", "inf"]);
        assert_eq!(percent(0.123_45), "12.3 %");
        assert_eq!([millions(260_032), millions(134_515_008)], ["260 k", "134.5 M"]);
        assert_eq!([power_of_two(0), power_of_two(-13), power_of_two(2)], ["1", "2⁻¹³", "2²"]);
    }
}
