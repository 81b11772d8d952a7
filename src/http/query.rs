//! Query parameters of `/ws`, `/events`, `/publish` and the history, parsed into types.

use std::sync::Arc;

use super::error::ApiError;
use crate::app::App;
use crate::channel::ChannelName;
use crate::hub::topic::Start;
use crate::message::{MOST_KEY_BYTES, Position, PositionError, is_key};

/// Maximum of `last`, in messages.
const MOST_LAST: usize = 1000;

/// Used instead of a position: starts with the oldest message, as in Mercure.
pub(super) const EARLIEST: &str = "earliest";
/// A position of a history that cannot exist: no epoch began in 1970.
const UNKNOWN: Position = Position { epoch: 0, offset: 1 };

/// The channel that a segment of a path names, percent-encoded.
///
/// # Errors
/// [`ApiError`] if it is no name of a channel.
pub fn channel_in_path(segment: &str) -> Result<ChannelName, ApiError> {
    let name = percent_encoding::percent_decode_str(segment)
        .decode_utf8()
        .map_err(|_| ApiError::parameter("the channel's name in the path is not UTF-8"))?;
    Ok(name.parse()?)
}

/// A parsed query string. Unknown parameters are ignored, because proxies and tools add their own.
pub struct Query(Vec<(String, String)>);

impl Query {
    /// Parses a raw query string.
    pub fn parse(raw: &str) -> Self {
        Self(form_urlencoded::parse(raw.as_bytes()).into_owned().collect())
    }

    /// The last value of a parameter.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().rev().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// The named channels without duplicates, or the default channel.
    ///
    /// # Errors
    /// [`ApiError`] for an invalid name, too many channels, or a misspelled `channel`. If that were
    /// ignored, the default channel would replace the channel that the client meant.
    pub fn channels(&self, app: &App) -> Result<Vec<ChannelName>, ApiError> {
        if let Some((name, _)) = self.0.iter().find(|(name, _)| is_misspelt_channel(name)) {
            return Err(ApiError::parameter(format!(
                "there is no parameter `{name}`: write `channel=NAME`, and `&channel=OTHER` for each further channel"
            )));
        }
        let mut channels: Vec<ChannelName> = Vec::new();
        for (_, name) in self.0.iter().filter(|(key, _)| key == "channel") {
            let channel: ChannelName = name.parse()?;
            if !channels.contains(&channel) {
                channels.push(channel);
            }
            if channels.len() > app.limits.channels {
                app.metrics.count_refused("channels");
                return Err(ApiError::parameter(format!(
                    "at most {} channels can be named at once; open another connection for more",
                    app.limits.channels
                )));
            }
        }
        if channels.is_empty() {
            channels.push(app.default_channel.clone());
        }
        Ok(channels)
    }

    /// The start in each of the channels: from `since` where it has a position, otherwise from `last`. Both
    /// are validated, so that an error shows at once and not only at a reconnect.
    ///
    /// # Errors
    /// [`ApiError`] if a position, the number of positions or `last` is not valid.
    pub fn starts(&self, channels: &[ChannelName]) -> Result<Vec<Start>, ApiError> {
        let last = self.last()?;
        let since = self.get("since").filter(|since| !since.is_empty());
        since.map_or_else(|| Ok(vec![last; channels.len()]), |since| positions(since, channels.len(), last))
    }

    /// The starts for an event stream. `Last-Event-ID`, which `EventSource` sends when it
    /// reconnects, takes precedence over the parameters that libraries send instead of it, and
    /// those over `since`, which is as old as the URL.
    ///
    /// Invalid positions count as positions in the history of another server, and so lead to a gap.
    /// An error response would make `EventSource` stop reconnecting.
    ///
    /// # Errors
    /// [`ApiError`] if `last` is not valid.
    pub fn event_starts(&self, channels: &[ChannelName], last_event_id: Option<&[u8]>) -> Result<Vec<Start>, ApiError> {
        let last = self.last()?;
        let in_header = last_event_id.map(String::from_utf8_lossy);
        let in_url = || self.0.iter().rev().find(|(name, _)| is_last_event_id(name)).map(|(_, id)| id.as_str());
        let is_given = |list: &&str| !list.is_empty();
        let id = in_header.as_deref().filter(is_given).or_else(|| in_url().filter(is_given));
        // A reconnect does not begin anew, but a URL may name channels that have no position yet.
        let id = id.map(|id| (id, Start::Live));
        let since = || self.get("since").filter(is_given).map(|since| (since, last));
        let Some((list, empty)) = id.or_else(since) else { return Ok(vec![last; channels.len()]) };
        let starts: Vec<_> =
            each_position(list, channels.len(), empty).map(|start| start.unwrap_or(Start::After(UNKNOWN))).collect();
        Ok(if starts.len() == channels.len() { starts } else { vec![Start::After(UNKNOWN); channels.len()] })
    }

    fn last(&self) -> Result<Start, ApiError> {
        match self.get("last").map(str::parse) {
            None => Ok(Start::Live),
            Some(Ok(count)) if count <= MOST_LAST => Ok(Start::Last(count)),
            Some(_) => Err(ApiError::parameter(format!("`last` must be a number from 0 to {MOST_LAST}"))),
        }
    }

    /// Whether the query has `format=json`.
    ///
    /// # Errors
    /// [`ApiError`] for another format.
    pub fn wants_json(&self) -> Result<bool, ApiError> {
        match self.get("format") {
            None => Ok(false),
            Some("json") => Ok(true),
            Some(_) => Err(ApiError::parameter("`format` can only be `json`; leave it out for bare payloads")),
        }
    }

    /// The `key` and `remove` parameters.
    ///
    /// # Errors
    /// [`ApiError`] if one is not valid, or if `remove` has no `key`.
    pub fn key(&self) -> Result<(Option<Arc<str>>, bool), ApiError> {
        let remove = match self.get("remove") {
            None | Some("false") => false,
            Some("true") => true,
            Some(_) => return Err(ApiError::parameter("`remove` must be `true` or `false`")),
        };
        let key = self.get("key").map(check_key).transpose()?;
        if remove && key.is_none() {
            return Err(ApiError::parameter("`remove=true` needs the `key` to remove"));
        }
        Ok((key, remove))
    }
}

/// Validates a key of a keyed channel, or an idempotency id.
///
/// # Errors
/// [`ApiError`] if it is empty, longer than [`MOST_KEY_BYTES`], or has control characters or
/// invalid UTF-8.
pub fn check_key(key: &str) -> Result<Arc<str>, ApiError> {
    if !is_key(key) {
        return Err(ApiError::parameter(format!(
            "a key has 1 to {MOST_KEY_BYTES} bytes of UTF-8 without control characters"
        )));
    }
    Ok(key.into())
}

/// Whether the parameter is a probable misspelling of `channel`, including the list syntax of
/// frameworks.
fn is_misspelt_channel(name: &str) -> bool {
    let is_index = |index: &str| index.len() <= 3 && index.bytes().all(|byte| byte.is_ascii_digit());
    let index = name.split_once('[').and_then(|(stem, rest)| Some((stem, rest.strip_suffix(']')?)));
    let stem = index.filter(|(_, index)| is_index(index)).map_or(name, |(stem, _)| stem);
    name != "channel"
        && ["channel", "channels", "chanel", "chanels"].iter().any(|meant| stem.eq_ignore_ascii_case(meant))
}

/// Whether the parameter is one under which libraries send a `Last-Event-ID` in the URL:
/// `lastEventId`, `lastEventID`, `last-event-id`, `evs_last_event_id`.
fn is_last_event_id(name: &str) -> bool {
    let letters = name.bytes().filter(|byte| !matches!(byte, b'-' | b'_')).map(|byte| byte.to_ascii_lowercase());
    let is = |meant: &str| letters.clone().eq(meant.bytes());
    is("lasteventid") || is("evslasteventid")
}

/// Parses a comma-separated list with one position for each channel, or `empty` where it has none.
fn positions(list: &str, channels: usize, empty: Start) -> Result<Vec<Start>, ApiError> {
    let starts: Vec<_> = each_position(list, channels, empty)
        .collect::<Result<_, _>>()
        .map_err(|error| ApiError::parameter(error.to_string()))?;
    if starts.len() != channels {
        return Err(ApiError::parameter(format!(
            "`since` has {} positions for {channels} channels; give one per channel, separated by commas",
            starts.len()
        )));
    }
    Ok(starts)
}

/// The elements of a list of positions. A single `earliest` applies to all channels, and means the
/// oldest retained message.
fn each_position(list: &str, channels: usize, empty: Start) -> impl Iterator<Item = Result<Start, PositionError>> {
    let repeated = if list.trim() == EARLIEST { channels } else { 1 };
    std::iter::repeat_n(list, repeated).flat_map(|list| list.split(',')).map(move |text| match text.trim() {
        "" => Ok(empty),
        EARLIEST => Ok(Start::Oldest),
        text => text.parse().map(Start::After),
    })
}
