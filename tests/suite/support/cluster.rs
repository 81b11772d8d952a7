//! A Redis Cluster: masters with all slots among them, and a replica of each where a test wants one.

use std::time::Instant;

use super::network::Host;
use super::redis::Redis;
use super::{PATIENCE, until};

/// How long a node must be silent before the others take it for dead, in milliseconds.
const NODE_TIMEOUT: &str = "1000";
const SLOTS: usize = 16384;
const HERE: &str = "127.0.0.1";

pub struct ClusterSet {
    /// The masters at first, then their replicas in the same order.
    pub nodes: Vec<Redis>,
    masters: usize,
    /// The address of each master and its replica.
    addresses: Vec<String>,
    /// More arguments of each node.
    arguments: Vec<String>,
}

impl ClusterSet {
    /// Three masters.
    pub async fn start() -> Self {
        Self::of(3, vec![HERE.to_owned(); 3], &[]).await
    }

    /// Three masters with a replica each.
    pub async fn with_replicas() -> Self {
        Self::with_replicas_and(&[]).await
    }

    /// The same with more arguments for each node.
    pub async fn with_replicas_and(more: &[&str]) -> Self {
        Self::with_replicas_at(vec![HERE.to_owned(); 3], more).await
    }

    /// The same for a host that reaches each master, and its replica, on a cable of their own.
    pub async fn with_replicas_for(host: &Host, more: &[&str]) -> Self {
        Self::with_replicas_at((0..3).map(|cable| host.address_here(cable)).collect(), more).await
    }

    async fn with_replicas_at(addresses: Vec<String>, more: &[&str]) -> Self {
        let mut set = Self::of(3, addresses, more).await;
        for master in 0..set.masters {
            let replica = set.join().await;
            let id = set.id(master);
            until("the replica knows its master", || async {
                set.nodes[replica].cli(&["CLUSTER", "REPLICATE", &id]) == "OK"
            })
            .await;
        }
        set.until_replicated().await;
        set
    }

    async fn of(masters: usize, addresses: Vec<String>, more: &[&str]) -> Self {
        let arguments = more.iter().map(|&argument| argument.to_owned()).collect();
        let mut set = Self { nodes: Vec::new(), masters, addresses, arguments };
        for index in 0..masters {
            set.join().await;
            let (first, last) = (index * SLOTS / masters, (index + 1) * SLOTS / masters - 1);
            let node = &set.nodes[index];
            assert_eq!(node.cli(&["CLUSTER", "ADDSLOTSRANGE", &first.to_string(), &last.to_string()]), "OK");
        }
        set.until_whole().await;
        set
    }

    /// Adds a master without slots; returns its index.
    pub async fn join(&mut self) -> usize {
        let arguments = ["--save", "", "--cluster-enabled", "yes", "--cluster-node-timeout", NODE_TIMEOUT];
        let more = ["--cluster-port", "TLS_PORT", "--repl-diskless-sync-delay", "0"];
        let index = self.nodes.len();
        let address = self.addresses[index % self.masters].clone();
        let place = ["--cluster-announce-ip", &address, "--protected-mode", "no", "--bind", HERE, &address];
        // The same address twice is none.
        let place = &place[..place.len() - usize::from(address == HERE)];
        let own = self.arguments.iter().map(String::as_str).collect::<Vec<_>>();
        let node = Redis::start_with(&[&arguments[..], &more, place, &own].concat()).await;
        assert_eq!(node.cli(&["CLUSTER", "SET-CONFIG-EPOCH", &(index + 1).to_string()]), "OK");
        let [port, bus] = [node.port, node.tls_port].map(|port| port.to_string());
        self.nodes.push(node);
        until("the nodes know one another", || async {
            // A busy machine may let the handshake time out.
            if index > 0 && info(&self.nodes[index], "cluster_known_nodes") == "1" {
                assert_eq!(self.nodes[0].cli(&["CLUSTER", "MEET", &address, &port, &bus]), "OK");
            }
            let count = self.nodes.len().to_string();
            self.nodes.iter().all(|node| info(node, "cluster_known_nodes") == count)
        })
        .await;
        index
    }

    /// Removes the last node, which must have no slots.
    pub async fn leave(&mut self) {
        let left = self.nodes.pop().expect("a node joined");
        let id = left.cli(&["CLUSTER", "MYID"]);
        drop(left);
        // The others may tell one another about it for some time.
        until("the others have forgotten the node", || async {
            self.nodes.iter().for_each(|node| _ = node.cli(&["CLUSTER", "FORGET", &id]));
            self.nodes.iter().all(|node| !node.cli(&["CLUSTER", "NODES"]).contains(&id))
        })
        .await;
    }

    /// Waits until all nodes serve all slots.
    pub async fn until_whole(&self) {
        until("the Cluster is whole", || async {
            self.nodes
                .iter()
                .all(|node| info(node, "cluster_state") == "ok" && info(node, "cluster_slots_ok") == SLOTS.to_string())
        })
        .await;
    }

    /// Waits until each master has a replica that has what it has.
    pub async fn until_replicated(&self) {
        self.until_whole().await;
        until("the replicas have what their masters have", || async {
            let roles: Vec<_> = self.nodes.iter().map(|node| node.cli(&["ROLE"])).collect();
            let replicas = roles.iter().filter(|role| role.starts_with("slave") && role.contains("\nconnected\n"));
            replicas.count() == self.masters
                && self
                    .nodes
                    .iter()
                    .all(|node| node.cli(&["CLUSTER", "NODES"]).matches("slave ").count() == self.masters)
        })
        .await;
    }

    /// Waits until another node than this serves the slot that it served.
    pub async fn until_failed_over(&self, dead: usize, slot: usize) {
        until("another master", || async {
            let others = self.nodes.iter().enumerate().filter(|(index, _)| *index != dead);
            others.clone().all(|(_, node)| {
                info(node, "cluster_state") == "ok"
                    && self.owner_as_told_by(node, slot).is_some_and(|owner| owner != dead)
            })
        })
        .await;
    }

    /// The nodes that are masters with slots.
    pub fn masters(&self) -> Vec<usize> {
        let is_master = |node: &Redis| node.cli(&["ROLE"]).starts_with("master");
        (0..self.nodes.len()).filter(|&index| is_master(&self.nodes[index])).collect()
    }

    /// The URL that names two of the nodes.
    pub fn url(&self) -> String {
        let host = |(index, node): (usize, &Redis)| format!("{}:{}", self.addresses[index % self.masters], node.port);
        let hosts: Vec<_> = self.nodes[..2].iter().enumerate().map(host).collect();
        format!("redis+cluster://{}", hosts.join(","))
    }

    /// The index of the node that serves a channel, as the first living node knows it.
    pub fn owner(&self, channel: &str) -> usize {
        let slot = self.slot(channel);
        let living = self.nodes.iter().find(|node| node.cli(&["PING"]) == "PONG").expect("a node lives");
        self.owner_as_told_by(living, slot).expect("the slot is served by one of ours")
    }

    fn owner_as_told_by(&self, node: &Redis, slot: usize) -> Option<usize> {
        let lines = node.cli(&["CLUSTER", "SLOTS"]);
        let lines: Vec<_> = lines.lines().collect();
        // The first and last slot, then the address of the master.
        let range = lines.windows(4).find(|window| {
            let numbers = window[..2].iter().map(|text| text.parse::<usize>().ok()).collect::<Option<Vec<_>>>();
            self.addresses.iter().any(|address| address == window[2])
                && numbers.is_some_and(|numbers| (numbers[0]..=numbers[1]).contains(&slot))
        });
        let port: u16 = range?[3].parse().ok()?;
        self.nodes.iter().position(|node| node.port == port)
    }

    /// The hash slot of a channel.
    pub fn slot(&self, channel: &str) -> usize {
        let living = self.nodes.iter().find(|node| node.cli(&["PING"]) == "PONG").expect("a node lives");
        living.cli(&["CLUSTER", "KEYSLOT", channel]).parse().unwrap()
    }

    /// How many clients listen to what livebridge publishes on a channel.
    pub fn listeners(&self, channel: &str) -> usize {
        let answer = self.nodes[self.owner(channel)].cli(&["PUBSUB", "SHARDNUMSUB", channel]);
        answer.lines().last().unwrap_or("0").parse().unwrap_or(0)
    }

    /// The id of a node.
    pub fn id(&self, index: usize) -> String {
        self.nodes[index].cli(&["CLUSTER", "MYID"])
    }

    /// Begins to move a slot: from now on, its missing keys are looked for on the other node.
    pub fn begin_move(&self, slot: usize, from: usize, to: usize) {
        let slot = slot.to_string();
        let [source, target] = [self.id(from), self.id(to)];
        assert_eq!(self.nodes[to].cli(&["CLUSTER", "SETSLOT", &slot, "IMPORTING", &source]), "OK");
        assert_eq!(self.nodes[from].cli(&["CLUSTER", "SETSLOT", &slot, "MIGRATING", &target]), "OK");
    }

    /// Moves the keys of a slot, some at once.
    pub fn move_keys(&self, slot: usize, from: usize, to: usize) {
        let port = self.nodes[to].port.to_string();
        loop {
            let keys = self.nodes[from].cli(&["CLUSTER", "GETKEYSINSLOT", &slot.to_string(), "1000"]);
            let keys: Vec<_> = keys.lines().filter(|key| !key.is_empty()).collect();
            if keys.is_empty() {
                return;
            }
            let command = [&["MIGRATE", "127.0.0.1", &port, "", "0", "5000", "KEYS"][..], &keys].concat();
            let began = Instant::now();
            while let answer = self.nodes[from].cli(&command)
                && !["OK", "NOKEY"].contains(&&*answer)
            {
                // On a busy machine the nodes may take one another for dead, for a moment.
                assert!(began.elapsed() < PATIENCE && answer.contains("CLUSTERDOWN"), "{answer}");
            }
        }
    }

    /// Ends the move of a slot: it belongs to the other node now.
    pub fn end_move(&self, slot: usize, to: usize) {
        let target = self.id(to);
        for index in std::iter::once(to).chain((0..self.nodes.len()).filter(|&index| index != to)) {
            let node = &self.nodes[index];
            if node.cli(&["ROLE"]).starts_with("master") {
                assert_eq!(node.cli(&["CLUSTER", "SETSLOT", &slot.to_string(), "NODE", &target]), "OK");
            }
        }
    }

    /// Moves a slot with its keys.
    pub fn move_slot(&self, slot: usize, from: usize, to: usize) {
        self.begin_move(slot, from, to);
        self.move_keys(slot, from, to);
        self.end_move(slot, to);
    }
}

fn info(node: &Redis, name: &str) -> String {
    let text = node.cli(&["CLUSTER", "INFO"]);
    text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).unwrap_or_default().trim().to_owned()
}
