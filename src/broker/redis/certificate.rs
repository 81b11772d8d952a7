//! The time until which a certificate is valid, read from its DER encoding (RFC 5280, section 4.1).
//! Checks nothing: the TLS handshake does.

const SEQUENCE: u8 = 0x30;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;
/// The tag of the version, which a certificate of version 1 does not have.
const VERSION: u8 = 0xA0;

/// The earliest end of validity among some certificates, in seconds since 1970; `None` if there is
/// none that can be read.
pub(super) fn earliest_expiry<'a>(chain: impl IntoIterator<Item = &'a [u8]>) -> Option<i64> {
    chain.into_iter().filter_map(expiry).min()
}

fn expiry(der: &[u8]) -> Option<i64> {
    let (certificate, _) = expect(SEQUENCE, der)?;
    let (fields, _) = expect(SEQUENCE, certificate)?;
    let mut rest = fields;
    if rest.first() == Some(&VERSION) {
        rest = element(rest)?.2;
    }
    // The serial number, the signature algorithm and the issuer.
    for _ in 0..3 {
        rest = element(rest)?.2;
    }
    let (validity, _) = expect(SEQUENCE, rest)?;
    let (_, _, not_after) = element(validity)?;
    let (tag, time, _) = element(not_after)?;
    unix_time(tag, time)
}

/// Splits the first element off: its tag, its contents and what follows it.
fn element(der: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (&tag, rest) = der.split_first()?;
    let (&first, rest) = rest.split_first()?;
    let (length, rest) = match first {
        0..=0x7F => (usize::from(first), rest),
        // The length itself takes several bytes.
        0x81..=0x84 => {
            let (bytes, rest) = rest.split_at_checked(usize::from(first - 0x80))?;
            (bytes.iter().fold(0, |length, &byte| length << 8 | usize::from(byte)), rest)
        }
        _ => return None,
    };
    let (contents, rest) = rest.split_at_checked(length)?;
    Some((tag, contents, rest))
}

fn expect(wanted: u8, der: &[u8]) -> Option<(&[u8], &[u8])> {
    let (tag, contents, rest) = element(der)?;
    (tag == wanted).then_some((contents, rest))
}

/// Parses `YYMMDDhhmmssZ` or `YYYYMMDDhhmmssZ`, the only forms that RFC 5280 allows.
fn unix_time(tag: u8, time: &[u8]) -> Option<i64> {
    let digits = time.strip_suffix(b"Z")?;
    let (year, rest) = match (tag, digits.len()) {
        (UTC_TIME, 12) => {
            let (year, rest) = digits.split_at(2);
            let year = number(year)?;
            (if year < 50 { 2000 + year } else { 1900 + year }, rest)
        }
        (GENERALIZED_TIME, 14) => {
            let (year, rest) = digits.split_at(4);
            (number(year)?, rest)
        }
        _ => return None,
    };
    let mut fields = rest.chunks(2).map(number);
    let mut next = || fields.next().flatten();
    let (month, day, hour, minute, second) = (next()?, next()?, next()?, next()?, next()?);
    let days = days_since_1970(year, month, day);
    Some(((days * 24 + hour) * 60 + minute) * 60 + second)
}

fn number(digits: &[u8]) -> Option<i64> {
    digits.iter().try_fold(0, |number, digit| digit.is_ascii_digit().then(|| number * 10 + i64::from(digit - b'0')))
}

/// The days from 1970 to a date of the Gregorian calendar. The year begins in March here, so that
/// the leap day is its last.
fn days_since_1970(year: i64, month: i64, day: i64) -> i64 {
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let leap_days = year / 4 - year / 100 + year / 400;
    365 * year + leap_days + (153 * month + 2) / 5 + day - 1 - 719_468
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair, date_time_ymd};

    use super::*;

    fn certificate(year: i32, month: u8, day: u8) -> (Vec<u8>, i64) {
        let mut params = CertificateParams::new(["redis.example".to_owned()]).expect("a name");
        params.not_before = date_time_ymd(1990, 1, 1);
        params.not_after = date_time_ymd(year, month, day);
        let key = KeyPair::generate().expect("a key");
        (params.self_signed(&key).expect("a certificate").der().to_vec(), params.not_after.unix_timestamp())
    }

    #[test]
    fn the_end_of_a_certificate_is_read_in_both_notations() {
        // From 2050 on, a year has four digits.
        for (year, month, day) in
            [(1999, 12, 31), (2024, 2, 29), (2026, 3, 1), (2049, 12, 31), (2050, 1, 1), (2100, 3, 1)]
        {
            let (der, at) = certificate(year, month, day);
            assert_eq!(expiry(&der), Some(at), "{year}-{month}-{day}");
        }
    }

    #[test]
    fn the_earliest_certificate_of_a_chain_counts() {
        let (late, early) = (certificate(2040, 1, 1).0, certificate(2030, 1, 1));
        assert_eq!(earliest_expiry([&late[..], &early.0, b"no certificate"]), Some(early.1));
        assert_eq!(earliest_expiry([]), None);
    }

    #[test]
    fn a_certificate_that_is_cut_anywhere_has_no_end() {
        let (der, _) = certificate(2030, 1, 1);
        assert!((0..der.len()).all(|length| expiry(&der[..length]).is_none()));
        assert_eq!(unix_time(UTC_TIME, b"2601010000xxZ"), None);
        assert_eq!(unix_time(UTC_TIME, b"260101000000+0100"), None);
    }
}
