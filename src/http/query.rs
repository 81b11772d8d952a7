//! Query parameters: what may be asked of `/ws`, `/events`, `/publish` and the history, parsed into meant things.

use std::sync::Arc;

use super::error::ApiError;
use crate::app::App;
use crate::channel::ChannelName;
use crate::message::Position;
use crate::topic::Start;

/// The most messages that `last` may ask for.
const MOST_LAST: usize = 1000;
/// The longest key or idempotency id, in bytes.
pub const MOST_KEY_BYTES: usize = 255;

/// A query string, taken apart. Unknown parameters are left alone: proxies and tools add their own.
pub struct Query(Vec<(String, String)>);

impl Query {
    /// Takes a raw query string apart.
    pub fn parse(raw: &str) -> Self {
        Self(form_urlencoded::parse(raw.as_bytes()).into_owned().collect())
    }

    /// The last value of a parameter.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().rev().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// The channels that are named, or the default channel; none twice.
    pub fn channels(&self, app: &App) -> Result<Vec<ChannelName>, ApiError> {
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

    /// Where each of the channels begins. `last_event_id` stands in for `since`, as `EventSource` sends it; a `since` in
    /// the URL is older than that. What does not count is checked all the same: a mistake is told at once, not at a reconnect.
    pub fn starts(&self, channels: &[ChannelName], last_event_id: Option<&str>) -> Result<Vec<Start>, ApiError> {
        let positions = |list: Option<&str>| {
            list.filter(|list| !list.is_empty()).map(|list| positions(list, channels.len())).transpose()
        };
        let last = match self.get("last") {
            None => Start::Live,
            Some(last) => match last.parse() {
                Ok(count) if count <= MOST_LAST => Start::Last(count),
                _ => return Err(ApiError::parameter(format!("`last` must be a number from 0 to {MOST_LAST}"))),
            },
        };
        let since = positions(self.get("since"))?;
        Ok(positions(last_event_id)?.or(since).unwrap_or_else(|| vec![last; channels.len()]))
    }

    /// `format=json`, or not.
    pub fn wants_json(&self) -> Result<bool, ApiError> {
        match self.get("format") {
            None => Ok(false),
            Some("json") => Ok(true),
            Some(_) => Err(ApiError::parameter("`format` can only be `json`; leave it out for bare payloads")),
        }
    }

    /// `key` and `remove`, checked.
    pub fn key(&self) -> Result<(Option<Arc<str>>, bool), ApiError> {
        let remove = match self.get("remove") {
            None | Some("false") => false,
            Some("true") => true,
            Some(_) => return Err(ApiError::parameter("`remove` must be `true` or `false`")),
        };
        let key = self.get("key").map(check_key).transpose()?;
        if remove && key.is_none() {
            return Err(ApiError::parameter("`remove=true` needs the `key` that is to be removed"));
        }
        Ok((key, remove))
    }
}

/// A key of a keyed channel, or an idempotency id.
pub fn check_key(key: &str) -> Result<Arc<str>, ApiError> {
    // U+FFFD stands for bytes that were no UTF-8.
    let forbidden = |character: char| character.is_control() || character == char::REPLACEMENT_CHARACTER;
    if key.is_empty() || key.len() > MOST_KEY_BYTES || key.chars().any(forbidden) {
        return Err(ApiError::parameter(format!(
            "a key has 1 to {MOST_KEY_BYTES} bytes of UTF-8 without control characters"
        )));
    }
    Ok(key.into())
}

/// One position for each channel, separated by commas; an empty one means 'from now on'.
fn positions(list: &str, channels: usize) -> Result<Vec<Start>, ApiError> {
    let starts: Vec<_> = list
        .split(',')
        .map(|text| match text.trim() {
            "" => Ok(Start::Live),
            text => text.parse::<Position>().map(Start::After),
        })
        .collect::<Result<_, _>>()
        .map_err(|error| ApiError::parameter(error.to_string()))?;
    if starts.len() != channels {
        return Err(ApiError::parameter(format!(
            "`since` names {} positions for {channels} channels; separate one for each by commas",
            starts.len()
        )));
    }
    Ok(starts)
}
