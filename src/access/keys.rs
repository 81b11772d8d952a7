//! Publish keys, the credentials of producers. Several may be valid at once, so that a key can be
//! replaced without an interruption.

use std::fmt;
use std::path::{Path, PathBuf};

use aws_lc_rs::constant_time::verify_slices_are_equal;
use aws_lc_rs::digest::{Digest, SHA256, digest};
use serde::Deserialize;

use super::secret::Secret;
use crate::channel::ChannelName;
use crate::channel::ChannelPattern;

/// Minimum length in bytes: a shorter key could be guessed.
const FEWEST_BYTES: usize = 16;

/// A publish key in the rules file, not yet validated.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WrittenKey {
    key: Option<Secret>,
    key_file: Option<PathBuf>,
    #[serde(default = "every_channel")]
    channels: Vec<String>,
}

fn every_channel() -> Vec<String> {
    vec!["*".into()]
}

/// Why a publish key is not valid. Never contains the key.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// It is too short, or has characters that a header cannot carry.
    #[error(
        "{0}: a publish key needs at least {FEWEST_BYTES} visible ASCII characters and no comma; \
         `openssl rand -hex 32` generates one"
    )]
    Unfit(String),
    /// It has neither `key` nor `key_file`, or both.
    #[error("{0}: give either `key` or `key_file`")]
    Ambiguous(String),
    /// One of its patterns matches no channel.
    #[error("{0}: `channels` must name at least one pattern, and none may be empty; leave it out for every channel")]
    Channels(String),
    /// Its file cannot be read.
    #[error("{place}: cannot read {path}: {source}")]
    Unreadable {
        /// The place of the key in the configuration.
        place: String,
        /// The path of the file.
        path: String,
        /// The error of the operating system.
        source: std::io::Error,
    },
}

/// A valid publish key. Only its digest is kept, so that a comparison takes the same time for all
/// inputs.
pub struct PublishKey {
    digest: Digest,
    channels: Vec<ChannelPattern>,
}

impl PublishKey {
    /// A key for all channels. `place` names the key in errors.
    ///
    /// # Errors
    /// [`KeyError`] if the key is too short, or has characters other than visible ASCII.
    pub fn new(key: &Secret, place: &str) -> Result<Self, KeyError> {
        Self::limited(key, vec![ChannelPattern::new("*")], place)
    }

    fn limited(key: &Secret, channels: Vec<ChannelPattern>, place: &str) -> Result<Self, KeyError> {
        let text = key.reveal();
        if text.len() < FEWEST_BYTES || !text.bytes().all(|byte| byte.is_ascii_graphic() && byte != b',') {
            return Err(KeyError::Unfit(place.to_owned()));
        }
        Ok(Self { digest: digest(&SHA256, text.as_bytes()), channels })
    }

    /// Validates a key of the rules file, and reads its `key_file` if it has one.
    ///
    /// # Errors
    /// [`KeyError`] if the key is not valid, or its file cannot be read.
    pub fn written(written: &WrittenKey, place: &str) -> Result<Self, KeyError> {
        let key = match (&written.key, &written.key_file) {
            (Some(key), None) => key.clone(),
            (None, Some(path)) => read_secret(path).map_err(|source| KeyError::Unreadable {
                place: place.to_owned(),
                path: path.display().to_string(),
                source,
            })?,
            _ => return Err(KeyError::Ambiguous(place.to_owned())),
        };
        if written.channels.is_empty() || written.channels.iter().any(String::is_empty) {
            return Err(KeyError::Channels(place.to_owned()));
        }
        Self::limited(&key, written.channels.iter().map(ChannelPattern::new).collect(), place)
    }

    /// Whether the key may publish to the channel.
    pub fn allows(&self, channel: &ChannelName) -> bool {
        self.channels.iter().any(|pattern| pattern.matches(channel))
    }
}

impl fmt::Debug for PublishKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PublishKey").field("channels", &self.channels).finish_non_exhaustive()
    }
}

/// The index of the key that equals `shown`. Compares it with all keys, each in constant time.
pub fn find(keys: &[PublishKey], shown: &Secret) -> Option<usize> {
    let shown = digest(&SHA256, shown.reveal().as_bytes());
    let equals = |key: &PublishKey| verify_slices_are_equal(key.digest.as_ref(), shown.as_ref()).is_ok();
    keys.iter().enumerate().fold(None, |found, (index, key)| if equals(key) { Some(index) } else { found })
}

/// Reads a secret from a file, without the line end that editors add.
///
/// # Errors
/// If the file cannot be read or is not UTF-8.
pub fn read_secret(path: &Path) -> std::io::Result<Secret> {
    std::fs::read_to_string(path).map(|text| Secret::new(text.trim_end_matches(['\r', '\n'])))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_key_is_known_and_no_part_of_one() {
        let keys = ["0123456789abcdef", "fedcba9876543210"];
        let valid = keys.map(|key| PublishKey::new(&Secret::new(key), "here").expect("valid"));
        assert_eq!(keys.map(|key| find(&valid, &Secret::new(key))), [Some(0), Some(1)]);
        for shown in ["", "0123456789abcde", "0123456789abcdef0", "0123456789ABCDEF"] {
            assert_eq!(find(&valid, &Secret::new(shown)), None);
        }
    }

    #[test]
    fn an_unfit_key_is_refused_without_being_shown() {
        for unfit in ["short-one", "", "with a space in it", "with,a,comma,in,it"] {
            let error = PublishKey::new(&Secret::new(unfit), "LIVEBRIDGE_PUBLISH_KEY").expect_err("unfit").to_string();
            assert!(
                error.starts_with("LIVEBRIDGE_PUBLISH_KEY") && (unfit.is_empty() || !error.contains(unfit)),
                "{error}"
            );
        }
    }
}
