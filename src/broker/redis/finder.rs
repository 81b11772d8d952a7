//! Asks the nodes of a Redis Cluster for its topology, and knows how to reach them. `cluster.rs`
//! acts on the answers.

use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use rand::seq::SliceRandom;
use redis::{Cmd, Value};
use tokio::time::timeout;

use super::cluster_url::ClusterUrl;
use super::connection::{Connection, Role};
use super::endpoint::{Endpoint, RedisOptions, RedisOptionsError};
use super::error::ClientError;
use super::topology::{Place, Topology};

/// The time limit for a node to describe the topology.
const NODE_TIMEOUT: Duration = Duration::from_millis(500);
/// How many nodes are asked for the topology at once, and how many answers are enough.
const ASKED_AT_ONCE: usize = 8;
const ENOUGH_ANSWERS: usize = 3;

/// Asks nodes for the topology.
pub(super) struct Finder {
    start: Vec<Endpoint>,
}

impl Finder {
    /// Creates a finder for the nodes of a URL.
    ///
    /// # Errors
    /// [`RedisOptionsError`] if a setting is not valid.
    pub(super) fn new(url: ClusterUrl, options: &RedisOptions) -> Result<Self, RedisOptionsError> {
        let template = Endpoint::of(url.node, options)?;
        let start = url.nodes.iter().map(|(host, port)| Ok(template.at(host, *port)?));
        Ok(Self { start: start.collect::<Result<_, RedisOptionsError>>()? })
    }

    /// A node at an address, with the login and the TLS settings of the URL.
    ///
    /// # Errors
    /// [`RedisOptionsError`] if the host is not valid as the name in a certificate.
    pub(super) fn endpoint(&self, host: &str, port: u16) -> Result<Endpoint, RedisOptionsError> {
        // A URL has at least one node.
        Ok(self.start[0].at(host, port)?)
    }

    /// The newest topology that some of the known nodes report, or else those of the URL.
    ///
    /// # Errors
    /// [`ClientError::NoNode`] if none answers.
    pub(super) async fn find(&self, known: &[Place]) -> Result<Topology, ClientError> {
        let known = known.iter().filter_map(|(host, port)| self.endpoint(host, *port).ok());
        match newest(known.collect()).await {
            Ok(topology) => Ok(topology),
            Err(_) => newest(self.start.clone()).await,
        }
    }

    /// The addresses of the URL, for messages to people.
    pub(super) fn place(&self) -> String {
        let places: Vec<_> = self.start.iter().map(Endpoint::place).collect();
        format!("the Redis Cluster of {}", places.join(", "))
    }
}

/// The topology with the newest epoch among the first answers.
async fn newest(mut nodes: Vec<Endpoint>) -> Result<Topology, ClientError> {
    nodes.shuffle(&mut rand::rng());
    let mut failure = ClientError::NoNode("none is known".into());
    let mut answers: Vec<(u64, Topology)> = Vec::new();
    let mut asked: FuturesUnordered<_> = nodes.iter().take(ASKED_AT_ONCE).map(ask).collect();
    while let Some(answer) = asked.next().await {
        match answer {
            Ok(answer) => answers.push(answer),
            // That this is no Cluster is a better error than that a node does not answer.
            Err(_) if matches!(failure, ClientError::NotACluster) => {}
            Err(error) => failure = error,
        }
        if answers.len() == ENOUGH_ANSWERS {
            break;
        }
    }
    let newest = answers.into_iter().max_by_key(|(epoch, topology)| (*epoch, topology.served()));
    newest.map(|(_, topology)| topology).ok_or(failure)
}

/// The epoch of the Cluster and its topology, as one node sees them.
async fn ask(node: &Endpoint) -> Result<(u64, Topology), ClientError> {
    let asked = async {
        let mut connection = Connection::open(node, Role::Any).await?;
        let info: String = connection.call(Cmd::new().arg(&["CLUSTER", "INFO"])).await?;
        let slots: Value = connection.call(Cmd::new().arg(&["CLUSTER", "SLOTS"])).await?;
        let epoch = info.lines().find_map(|line| line.strip_prefix("cluster_current_epoch:")?.trim().parse().ok());
        let topology = Topology::parse(slots, node.host().unwrap_or_default());
        epoch.zip(topology).ok_or(ClientError::Unexpected("CLUSTER SLOTS"))
    };
    let answer = timeout(NODE_TIMEOUT, asked).await.unwrap_or_else(|_| Err(ClientError::timed_out()));
    answer.map_err(|error| match error.refusal() {
        Some(said) if said.contains("cluster support disabled") => ClientError::NotACluster,
        _ => ClientError::NoNode(format!("{}: {error}", node.place())),
    })
}
