//! Authorization: from the credentials of a request (a key or a token, and the page's origin),
//! decides what the request may do with which channels. Knows neither HTTP nor sockets: `http/`
//! extracts the credentials and writes the responses.

pub mod action;
pub mod claims;
pub mod issue;
pub mod jwks;
pub mod keys;
pub mod origin;
pub mod secret;
pub mod token;
pub mod token_key;

use std::sync::Arc;

pub use self::action::Action;
use self::action::AnonymousRules;
use self::claims::Claims;
use self::jwks::Jwks;
use self::keys::PublishKey;
use self::origin::{OriginCheck, Origins};
use self::secret::Secret;
use self::token::{TokenError, Tokens};
use crate::channel::ChannelName;
use crate::presence::{self, ClientId};

/// The credentials of a request, and the origin of the page that sent it.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Credentials {
    /// `Authorization: Bearer`: a publish key or a token.
    pub bearer: Option<Secret>,
    /// A token in the URL.
    pub query: Option<Secret>,
    /// A token in the configured cookie.
    pub cookie: Option<Secret>,
    /// The result of checking the `Origin` header.
    pub origin: OriginCheck,
    /// For a request without an `Origin`: whether the browser reports a page of the same origin
    /// (`Sec-Fetch-Site`).
    pub says_same_origin: bool,
}

/// Why a request is denied.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AccessError {
    /// The page's origin is not allowed.
    #[error("pages of this origin may not connect to this instance; it allows {0}")]
    Origin(String),
    /// The request has no credentials, and anonymous clients may not do this.
    #[error("{0} the channel {1} needs a token (or, to publish, a key): `Authorization: Bearer TOKEN`")]
    Anonymous(&'static str, ChannelName),
    /// The request has no credentials, and its channels are not known yet.
    #[error("this needs a token (or, to publish, a key): `Authorization: Bearer TOKEN`")]
    Nobody,
    /// The publish key is not valid.
    #[error("the key is not valid here")]
    Key,
    /// The token is not valid.
    #[error("the token is not valid: {0}")]
    Token(TokenError),
    /// The token came in a cookie, and the page may not use cookies.
    #[error(
        "cookies are accepted only from pages of this origin or of an --allowed-origin; send the token in the request"
    )]
    Cookie,
    /// The key or token does not allow the action with this channel.
    #[error("{0} the channel {1} is not allowed with this key or token")]
    Forbidden(&'static str, ChannelName),
    /// The token of a subscription is for another channel or another user.
    #[error("this token is not for the channel {0} and this user")]
    Subscription(ChannelName),
    /// The key or token allows the action with no channel.
    #[error("{0} any channel is not allowed with this key or token")]
    Useless(&'static str),
}

/// What the sender of a request may do.
#[derive(Debug, Clone)]
pub struct Permissions {
    holder: Holder,
    access: Arc<Access>,
}

#[derive(Debug, Clone)]
enum Holder {
    /// No access control is configured: everything is allowed.
    Everybody,
    Anonymous,
    /// Anonymous, because a cookie was ignored: browsers send cookies with the requests of any
    /// page.
    UntrustedCookie,
    Key(usize),
    Token(Arc<Claims>),
}

/// The access configuration: publish keys, tokens, origins and anonymous rights.
#[derive(Debug)]
pub struct Access {
    keys: Vec<PublishKey>,
    tokens: Option<Tokens>,
    origins: Origins,
    cookie: Option<String>,
    anonymous: Arc<dyn AnonymousRules>,
}

impl Access {
    /// Combines keys, tokens and origins. `anonymous` holds the rights of clients without
    /// credentials.
    pub fn new(
        keys: Vec<PublishKey>,
        tokens: Option<Tokens>,
        origins: Origins,
        cookie: Option<String>,
        anonymous: Arc<dyn AnonymousRules>,
    ) -> Arc<Self> {
        Arc::new(Self { keys, tokens, origins, cookie, anonymous })
    }

    /// Whether no access control is configured, so that everything is allowed.
    pub fn is_open(&self) -> bool {
        self.keys.is_empty() && self.tokens.is_none()
    }

    /// Whether any client can subscribe: with a token, or without credentials.
    pub fn lets_anybody_subscribe(&self) -> bool {
        self.is_open() || self.tokens.is_some() || self.anonymous.allow_anywhere(Action::Subscribe)
    }

    /// The origins of the pages that may connect.
    pub fn origins(&self) -> &Origins {
        &self.origins
    }

    /// The name of the cookie that may hold a token.
    pub fn cookie(&self) -> Option<&str> {
        self.cookie.as_deref()
    }

    /// The token keys that are fetched from a URL, if configured.
    pub fn remote_keys(&self) -> Option<&Arc<Jwks>> {
        self.tokens.as_ref()?.remote.as_ref()
    }

    /// Checks whether the action is allowed with each of the channels or, if the channels are not
    /// known yet, with at least one channel.
    ///
    /// # Errors
    /// [`AccessError`] for the first channel with which the action is not allowed, or for invalid
    /// credentials.
    pub async fn authorize(
        self: &Arc<Self>,
        credentials: &Credentials,
        channels: &[ChannelName],
        action: Action,
    ) -> Result<Permissions, AccessError> {
        let permissions = self.identify(credentials, action).await?;
        if channels.is_empty() && !permissions.allows_any(action) {
            return Err(AccessError::Useless(action.doing()));
        }
        channels.iter().try_for_each(|channel| permissions.check(channel, action))?;
        Ok(permissions)
    }

    /// The part of the check that needs no channels. It already refuses clients that may do nothing
    /// at all.
    ///
    /// # Errors
    /// [`AccessError`] if the origin is not allowed, the credentials are not valid, or credentials
    /// are missing.
    pub async fn identify(
        self: &Arc<Self>,
        credentials: &Credentials,
        action: Action,
    ) -> Result<Permissions, AccessError> {
        self.check_origin(credentials)?;
        let holder = if self.is_open() { Holder::Everybody } else { self.holder(credentials).await? };
        match holder {
            Holder::Anonymous if !self.anonymous.allow_anywhere(action) => return Err(AccessError::Nobody),
            Holder::UntrustedCookie if !self.anonymous.allow_anywhere(action) => return Err(AccessError::Cookie),
            _ => {}
        }
        Ok(Permissions { holder, access: self.clone() })
    }

    /// Checks only the origin, of a client whose credentials come later.
    ///
    /// # Errors
    /// [`AccessError::Origin`] if pages of the origin may not connect.
    pub fn check_origin(&self, credentials: &Credentials) -> Result<(), AccessError> {
        if credentials.origin == OriginCheck::Refused {
            return Err(AccessError::Origin(self.origins.to_string()));
        }
        Ok(())
    }

    async fn holder(&self, credentials: &Credentials) -> Result<Holder, AccessError> {
        let token = if let Some(bearer) = &credentials.bearer {
            if let Some(index) = keys::find(&self.keys, bearer) {
                return Ok(Holder::Key(index));
            }
            bearer
        } else if let Some(token) = &credentials.query {
            token
        } else if let Some(token) = &credentials.cookie {
            if credentials.origin != OriginCheck::Trusted
                && !(credentials.origin == OriginCheck::Absent && credentials.says_same_origin)
            {
                return Ok(Holder::UntrustedCookie);
            }
            token
        } else {
            return Ok(Holder::Anonymous);
        };
        let tokens = self.tokens.as_ref().ok_or(AccessError::Key)?;
        tokens.verify(token).await.map(|claims| Holder::Token(Arc::new(claims))).map_err(AccessError::Token)
    }
}

impl Permissions {
    /// Checks whether the permissions cover an action with a channel.
    ///
    /// # Errors
    /// [`AccessError`] if they do not cover it.
    pub fn check(&self, channel: &ChannelName, action: Action) -> Result<(), AccessError> {
        let everybody = || self.access.anonymous.allow(channel, action);
        let held = match &self.holder {
            Holder::Everybody => true,
            Holder::Anonymous | Holder::UntrustedCookie => false,
            Holder::Key(index) => action != Action::Subscribe && self.access.keys[*index].allows(channel),
            Holder::Token(claims) => claims.livebridge.covers(action, channel),
        };
        match &self.holder {
            _ if held || everybody() => Ok(()),
            Holder::Anonymous => Err(AccessError::Anonymous(action.doing(), channel.clone())),
            Holder::UntrustedCookie => Err(AccessError::Cookie),
            _ => Err(AccessError::Forbidden(action.doing(), channel.clone())),
        }
    }

    /// Checks a token for a single subscription of the client with these permissions. Returns how long it holds, in
    /// seconds; `None` if no access control is configured.
    ///
    /// # Errors
    /// [`AccessError`] if the token is not valid, or not for this channel, or for another user than that of the
    /// connection.
    pub async fn check_subscription(&self, token: &Secret, channel: &ChannelName) -> Result<Option<u64>, AccessError> {
        if self.access.is_open() {
            return Ok(None);
        }
        let tokens = self.access.tokens.as_ref().ok_or(AccessError::Key)?;
        let claims = tokens.verify(token).await.map_err(AccessError::Token)?;
        if claims.covers_subscription(channel) && claims.sub.as_deref() == self.user() {
            Ok(Some(tokens.holds_for(&claims)))
        } else {
            Err(AccessError::Subscription(channel.clone()))
        }
    }

    /// The user, if there is one: `sub` of the token.
    pub fn user(&self) -> Option<&str> {
        if let Holder::Token(claims) = &self.holder { claims.sub.as_deref() } else { None }
    }

    /// Describes a client with these permissions to the others on a channel.
    pub fn describe(&self, id: ClientId) -> presence::Client {
        let claims = if let Holder::Token(claims) = &self.holder { Some(claims) } else { None };
        let user = claims.and_then(|claims| claims.sub.as_deref()).unwrap_or_default();
        presence::Client::new(id, user, claims.and_then(|claims| claims.info.as_deref()))
    }

    /// Whether the request has a publish key, and so comes from one of the operator's own
    /// producers.
    pub fn is_by_key(&self) -> bool {
        matches!(self.holder, Holder::Key(_))
    }

    /// Whether the permissions cover the action with at least one channel.
    fn allows_any(&self, action: Action) -> bool {
        let held = match &self.holder {
            Holder::Everybody => true,
            Holder::Anonymous | Holder::UntrustedCookie => false,
            Holder::Key(_) => action != Action::Subscribe,
            Holder::Token(claims) => !claims.livebridge.patterns(action).is_empty(),
        };
        held || self.access.anonymous.allow_anywhere(action)
    }

    /// Checks again that the token has not expired, because a request may outlive its token.
    ///
    /// # Errors
    /// [`TokenError::Expired`] if it has.
    pub fn check_time(&self) -> Result<(), AccessError> {
        if self.holds_for() == Some(0) { Err(AccessError::Token(TokenError::Expired)) } else { Ok(()) }
    }

    /// The remaining validity in seconds; `None` if it does not expire.
    pub fn holds_for(&self) -> Option<u64> {
        match (&self.holder, &self.access.tokens) {
            (Holder::Token(claims), Some(tokens)) => Some(tokens.holds_for(claims)),
            _ => None,
        }
    }
}
