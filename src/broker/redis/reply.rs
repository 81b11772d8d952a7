//! Owned replies, as values of the redis crate, which converts them to Rust types. Frequent replies
//! are read in place instead (`resp.rs`).

use redis::Value;

use super::error::ClientError;
use super::resp::{Malformed, Measure};

/// A value, or [`ClientError::Refused`] if Redis replied with an error.
pub(super) type Reply = Result<Value, ClientError>;

/// Parses the first reply and returns it with its length in bytes. `None` if it is incomplete; call
/// again with more bytes.
pub(super) fn parse(measure: &mut Measure, bytes: &[u8]) -> Result<Option<(Reply, usize)>, Malformed> {
    let Some(length) = measure.advance(bytes)? else { return Ok(None) };
    let reply = match bytes[..length].strip_prefix(b"-") {
        Some(said) => Err(ClientError::Refused(String::from_utf8_lossy(said).trim_end().to_owned())),
        None => Ok(redis::parse_redis_value(&bytes[..length]).map_err(|_| Malformed)?),
    };
    Ok(Some((reply, length)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reply_is_a_value_or_what_redis_refused() {
        let bytes = b"*2\r\n$1\r\na\r\n*1\r\n:-7\r\n-NOPERM no\r\n";
        let mut measure = Measure::default();
        (0..20).for_each(|end| assert!(matches!(parse(&mut measure, &bytes[..end]), Ok(None)), "{end}"));
        let Ok(Some((Ok(value), 20))) = parse(&mut measure, bytes) else { panic!("a reply of 20 bytes") };
        assert_eq!(redis::from_redis_value(value), Ok(("a".to_owned(), vec![-7])));
        let Ok(Some((Err(error), 12))) = parse(&mut measure, &bytes[20..]) else { panic!("a refusal of 12 bytes") };
        assert_eq!((error.code(), error.refusal()), (Some("NOPERM"), Some("NOPERM no")));
        assert!(parse(&mut measure, b"HTTP/1.1 400\r\n").is_err());
    }
}
