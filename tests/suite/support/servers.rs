//! What keeps the messages, in each form in which livebridge reaches it: one Redis, with TLS and client certificates, a master with
//! a replica and three Sentinels, and a Cluster of three masters with a replica each. Its servers can be stopped together.

use super::certificates::Certificates;
use super::cluster::ClusterSet;
use super::instance::Options;
use super::redis::Redis;
use super::sentinel::SentinelSet;

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Form {
    One,
    Tls,
    Sentinels,
    Cluster,
}

pub enum Servers {
    One(Box<Redis>),
    Tls(Box<Redis>),
    Sentinels(Box<SentinelSet>),
    Cluster(ClusterSet),
}

/// Keeps the data across restarts.
const PERSISTENT: [&str; 4] = ["--appendonly", "yes", "--appendfsync", "always"];

impl Servers {
    /// Servers that come back empty.
    pub async fn start(form: Form) -> Self {
        Self::with(form, &[]).await
    }

    /// Servers that keep their data across restarts.
    pub async fn persistent(form: Form) -> Self {
        Self::with(form, &PERSISTENT).await
    }

    async fn with(form: Form, more: &[&str]) -> Self {
        match form {
            Form::One => Self::One(Box::new(Redis::start_with(&[&["--save", ""], more].concat()).await)),
            Form::Tls => Self::Tls(Box::new(Redis::with_tls(Certificates::new(), more).await)),
            Form::Sentinels => Self::Sentinels(Box::new(SentinelSet::start_with(more).await)),
            Form::Cluster => Self::Cluster(ClusterSet::with_replicas_and(more).await),
        }
    }

    pub fn options(&self) -> Options {
        match self {
            Self::One(redis) => Options::redis(redis),
            Self::Tls(redis) => redis.tls_options(Options::default()),
            Self::Sentinels(set) => Options { redis_url: Some(set.url()), ..Options::default() },
            Self::Cluster(set) => Options { redis_url: Some(set.url()), ..Options::default() },
        }
    }

    /// All servers with data, masters first.
    pub fn all(&self) -> Vec<&Redis> {
        match self {
            Self::One(redis) | Self::Tls(redis) => vec![redis],
            Self::Sentinels(set) => set.servers.iter().collect(),
            Self::Cluster(set) => set.nodes.iter().collect(),
        }
    }

    fn all_mut(&mut self) -> Vec<&mut Redis> {
        match self {
            Self::One(redis) | Self::Tls(redis) => vec![redis],
            Self::Sentinels(set) => set.servers.iter_mut().collect(),
            Self::Cluster(set) => set.nodes.iter_mut().collect(),
        }
    }

    /// The server that serves a channel.
    pub fn master_of(&self, channel: &str) -> &Redis {
        match self {
            Self::One(redis) | Self::Tls(redis) => redis,
            Self::Sentinels(set) => set.master_of_servers(),
            Self::Cluster(set) => &set.nodes[set.owner(channel)],
        }
    }

    /// Calls one of the functions for a channel.
    pub fn call(&self, function: &str, channel: &str, arguments: &[&str]) -> String {
        let words = self.words_of_call(function, channel, arguments);
        self.master_of(channel).cli(&words.iter().map(String::as_str).collect::<Vec<_>>())
    }

    /// The words of such a call: a Cluster finds the shard by the keys of the channel.
    pub fn words_of_call(&self, function: &str, channel: &str, arguments: &[&str]) -> Vec<String> {
        let keys = match self {
            Self::Cluster(_) => ["head", "history"].map(|what| format!("livebridge:{{{channel}}}:{what}")).to_vec(),
            _ => vec![channel.to_owned()],
        };
        let mut words = vec!["FCALL".to_owned(), function.to_owned(), keys.len().to_string()];
        words.extend(keys);
        words.extend(arguments.iter().map(|&argument| argument.to_owned()));
        words
    }

    /// How many instances listen to a channel.
    pub fn listeners(&self, channel: &str) -> usize {
        match self {
            Self::Cluster(set) => set.listeners(channel),
            _ => self.master_of(channel).listeners(channel),
        }
    }

    /// Sends a command to each server.
    pub fn each(&self, command: &[&str]) {
        for server in self.all() {
            server.cli(command);
        }
    }

    /// Ends the connections on which instances hear messages.
    pub fn cut_subscriptions(&self) {
        self.each(&["CLIENT", "KILL", "TYPE", "pubsub"]);
    }

    /// Stops all servers with data, replicas first, so that none takes a master's place.
    pub fn stop(&mut self) {
        self.all_mut().into_iter().rev().for_each(Redis::stop);
    }

    /// Starts them again, and waits until they serve what they served.
    pub async fn start_again(&mut self) {
        for server in self.all_mut() {
            server.start_again().await;
        }
        match self {
            Self::One(_) | Self::Tls(_) => {}
            Self::Sentinels(set) => set.until_whole().await,
            Self::Cluster(set) => set.until_replicated().await,
        }
    }

    /// Has all servers stand still, and the Sentinels with them.
    pub fn stand_still(&self) {
        self.signal("STOP");
    }

    /// Lets them go on.
    pub fn go_on(&self) {
        self.signal("CONT");
    }

    fn signal(&self, signal: &str) {
        self.all().into_iter().for_each(|server| server.signal(signal));
        if let Self::Sentinels(set) = self {
            set.sentinels.iter().for_each(|sentinel| sentinel.signal(signal));
        }
    }
}

/// Runs each test on each form of servers.
macro_rules! on_each_form {
    ($($name:ident),* $(,)?) => {
        crate::support::servers::on_each_form!(on_redis, One; $($name),*);
        crate::support::servers::on_each_form!(on_redis_with_tls, Tls; $($name),*);
        crate::support::servers::on_each_form!(on_three_sentinels, Sentinels; $($name),*);
        crate::support::servers::on_each_form!(on_a_redis_cluster, Cluster; $($name),*);
    };
    ($module:ident, $form:ident; $($name:ident),*) => {
        mod $module {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $name() { super::$name(crate::support::servers::Form::$form).await; })*
        }
    };
}
pub(crate) use on_each_form;
