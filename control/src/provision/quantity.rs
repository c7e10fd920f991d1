//! How much a claim asks for: Kubernetes' quantities, as numbers that can be compared. A share has no limit of its own; the
//! figures are people's.

/// In bytes, what is less than one left out; none if it is no quantity.
pub(crate) fn bytes(text: &str) -> Option<u128> {
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, suffix) = text.split_at(end);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if number.len() > 30 || (whole.is_empty() && fraction.is_empty()) || fraction.contains('.') {
        return None;
    }
    let digits: u128 = format!("{whole}{fraction}").parse().ok()?;
    let (times, over): (u128, u128) = match suffix {
        "" => (1, 1),
        "n" => (1, 1_000_000_000),
        "u" => (1, 1_000_000),
        "m" => (1, 1000),
        "k" => (1000, 1),
        "Ki" => (1 << 10, 1),
        "Mi" => (1 << 20, 1),
        "Gi" => (1 << 30, 1),
        "Ti" => (1 << 40, 1),
        "Pi" => (1 << 50, 1),
        "Ei" => (1 << 60, 1),
        "M" => (10_u128.pow(6), 1),
        "G" => (10_u128.pow(9), 1),
        "T" => (10_u128.pow(12), 1),
        "P" => (10_u128.pow(15), 1),
        "E" => (10_u128.pow(18), 1),
        _ => {
            let power: i32 = suffix.strip_prefix(['e', 'E'])?.parse().ok()?;
            let scale = 10_u128.checked_pow(power.unsigned_abs())?;
            if power < 0 { (1, scale) } else { (scale, 1) }
        }
    };
    let over = over.checked_mul(10_u128.checked_pow(fraction.len().try_into().ok()?)?)?;
    Some(digits.checked_mul(times)? / over)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn quantities_are_numbers() {
        for (text, number) in [
            ("4Gi", 4 << 30),
            ("1.5Ki", 1536),
            ("10M", 10_000_000),
            ("1e3", 1000),
            ("2E3", 2000),
            ("12", 12),
            ("1500m", 1),
            (".5k", 500),
            ("1E", 10_u128.pow(18)),
        ] {
            assert_eq!(bytes(text), Some(number), "{text}");
        }
        for bad in ["", "Gi", "4gi", "1.2.3", "-1", "4 Gi", "1e", "."] {
            assert_eq!(bytes(bad), None, "{bad}");
        }
    }

    proptest! {
        #[test]
        fn no_text_is_too_much(text in "[0-9.]{0,40}[a-zA-Z0-9+-]{0,12}|\\PC{0,20}") {
            let _ = bytes(&text);
        }
    }
}
