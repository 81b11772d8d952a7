//! The machines that break: Redis, the instances, and the network between them.

use super::*;

/// Nodes that do not take one another for dead because this machine is busy.
const PATIENT: [&str; 2] = ["--cluster-node-timeout", "3000"];

/// What keeps the messages.
pub(super) enum Store {
    One(Box<Redis>),
    /// Three masters, with replicas where masters are killed.
    Cluster(ClusterSet),
    Sentinels(Box<SentinelSet>),
}

impl Store {
    fn nodes(&self) -> &[Redis] {
        match self {
            Self::One(redis) => std::slice::from_ref(&**redis),
            Self::Cluster(set) => &set.nodes,
            Self::Sentinels(set) => &set.servers,
        }
    }

    fn one(&mut self) -> &mut Redis {
        match self {
            Self::One(redis) => redis,
            _ => panic!("this fault is for one Redis"),
        }
    }

    fn cluster(&mut self) -> &mut ClusterSet {
        match self {
            Self::Cluster(set) => set,
            _ => panic!("this fault is for a Cluster"),
        }
    }

    fn sentinels(&mut self) -> &mut SentinelSet {
        match self {
            Self::Sentinels(set) => set,
            _ => panic!("this fault is for Sentinels"),
        }
    }
}

fn options(redis_url: &str) -> Options {
    Options { redis_url: Some(redis_url.to_owned()), ..Options::default() }.rules(RULES)
}

/// What runs, and is broken.
pub(super) struct Machines {
    pub(super) store: Store,
    deck: Vec<Fault>,
    /// Whether a replica may become the master that lacks what nobody was answered.
    pub(super) fails_over: bool,
    /// Where the first instance runs, if not here.
    host: Option<Host>,
    pub(super) proxies: Vec<Proxy>,
    pub(super) instances: Vec<Instance>,
    pub(super) options: Vec<Options>,
    pub(super) logs_of_the_dead: String,
    /// How many gaps instances had repaired that are dead.
    pub(super) repaired: f64,
    /// How many subscriptions Redis cut for their full buffer.
    pub(super) overflowed: usize,
}

impl Machines {
    /// One instance beside Redis, the others behind a proxy each.
    pub(super) async fn on_one_redis() -> Self {
        let redis = Redis::persistent().await;
        let port = redis.port;
        let mut machines = Self::with(Store::One(Box::new(redis)), &FAULTS);
        for index in 0..INSTANCES {
            let mut port = port;
            if index > 0 {
                let proxy = Proxy::start(port).await;
                port = proxy.port;
                machines.proxies.push(proxy);
            }
            machines.start_instance(options(&format!("redis://127.0.0.1:{port}/"))).await;
        }
        machines
    }

    /// All instances beside a Cluster.
    pub(super) async fn on_a_cluster() -> Self {
        let set = ClusterSet::start().await;
        let url = set.url();
        let mut machines = Self::with(Store::Cluster(set), &FAULTS_OF_A_CLUSTER);
        for _ in 0..INSTANCES {
            machines.start_instance(options(&url)).await;
        }
        machines
    }

    /// All instances beside a Cluster whose masters have replicas; one of them on a host of its own, if this process may have one.
    pub(super) async fn on_a_cluster_with_replicas() -> Self {
        let host = Host::start(3);
        let set = match &host {
            Some(host) => ClusterSet::with_replicas_for(host, &PATIENT).await,
            None => ClusterSet::with_replicas_and(&PATIENT).await,
        };
        let options = options(&set.url()).flag(WAIT_FOR_REPLICAS);
        let mut machines = Self::with(Store::Cluster(set), &FAULTS_WITH_REPLICAS);
        machines.fails_over = true;
        machines.host = host;
        if let Some(host) = &machines.host {
            machines.deck.push(Fault::ShardCutOff);
            let there = Options { within: host.run(), ..options.clone() };
            let address = host.address_of_instance();
            machines.start_instance(there.listen(&format!("{address}:0")).flag("--insecure")).await;
        }
        while machines.instances.len() < INSTANCES {
            machines.start_instance(options.clone()).await;
        }
        machines
    }

    /// All instances beside three Sentinels.
    pub(super) async fn on_sentinels() -> Self {
        let set = SentinelSet::start().await;
        let options = options(&set.url()).flag(WAIT_FOR_REPLICAS);
        let mut machines = Self::with(Store::Sentinels(Box::new(set)), &FAULTS_WITH_SENTINELS);
        machines.fails_over = true;
        for _ in 0..INSTANCES {
            machines.start_instance(options.clone()).await;
        }
        machines
    }

    fn with(store: Store, deck: &[Fault]) -> Self {
        Self {
            store,
            deck: deck.to_vec(),
            fails_over: false,
            host: None,
            proxies: Vec::new(),
            instances: Vec::new(),
            options: Vec::new(),
            logs_of_the_dead: String::new(),
            repaired: 0.0,
            overflowed: 0,
        }
    }

    async fn start_instance(&mut self, options: Options) {
        let options = options.flag(&format!("--instance-name lb-{}", self.instances.len()));
        let instance = options.clone().start().await;
        self.options.push(options.listen(&instance.address));
        self.instances.push(instance);
    }

    /// Until the time is over, each fault was there at least once, and enough was published.
    pub(super) async fn break_things(&mut self, world: &World, time: Duration) {
        let mut random = world.random("faults");
        let began = Instant::now();
        loop {
            let mut deck = self.deck.clone();
            deck.shuffle(&mut random);
            for (dealt, fault) in deck.into_iter().enumerate() {
                let is_over = began.elapsed() >= time && world.has_seen_enough(self.deck.len());
                if is_over || !world.complaints.lock().unwrap().is_empty() {
                    return;
                }
                sleep(Duration::from_millis(random.random_range(50..600))).await;
                world.note(&format!("{dealt} {fault:?}"));
                *world.faults.lock().unwrap().entry(fault).or_default() += 1;
                self.inject(fault, world, &mut random).await;
                world.note("over");
            }
        }
    }

    pub(super) async fn inject(&mut self, fault: Fault, world: &World, random: &mut StdRng) {
        let mut milliseconds = |range| Duration::from_millis(random.random_range(range));
        let (moment, while_) = (milliseconds(0..800), milliseconds(1000..3000));
        match fault {
            Fault::InstanceKilled => self.kill_instance(random.random_range(0..INSTANCES), moment).await,
            Fault::PubsubKilled => {
                self.store.nodes().iter().for_each(|node| _ = node.cli(&["CLIENT", "KILL", "TYPE", "pubsub"]));
            }
            Fault::RedisStoodStill => {
                let node = self.store.nodes().choose(random).unwrap();
                node.signal("STOP");
                sleep(while_).await;
                node.signal("CONT");
            }
            Fault::RedisRestarted => {
                self.store.one().stop();
                sleep(moment).await;
                self.store.one().start_again().await;
            }
            Fault::SlotsMoved => self.move_slots(world, moment / 10).await,
            Fault::NodeJoinedAndLeft => self.join_and_leave(world.channels.choose(random).unwrap(), moment).await,
            Fault::MasterKilled => self.lose_master(world.channels.choose(random).unwrap(), "KILL", moment).await,
            Fault::MasterStoodStill => self.lose_master(world.channels.choose(random).unwrap(), "STOP", moment).await,
            Fault::SentinelsGone => self.lose_sentinels(while_).await,
            Fault::ShardCutOff => {
                let host = self.host.as_ref().expect("dealt only with a host");
                let cable = random.random_range(0..3);
                host.cut(cable, true);
                sleep(while_).await;
                host.cut(cable, false);
            }
            Fault::CutMidReply => self.proxies.iter().for_each(Proxy::cut),
            Fault::BufferOverflowed => self.overflow(world, random).await,
            Fault::NetworkHeld => {
                let proxy = self.proxies.choose(random).unwrap();
                proxy.hold(true);
                sleep(while_).await;
                proxy.hold(false);
            }
            Fault::NetworkSliced => {
                self.proxies.iter().for_each(|proxy| proxy.slice(true));
                sleep(while_).await;
                self.proxies.iter().for_each(|proxy| proxy.slice(false));
            }
            Fault::SubscriptionDeafened => self.proxies.choose(random).unwrap().deafen(),
            Fault::ClientsDawdled => {
                world.clients.iter().filter(|_| random.random()).for_each(|client| client.dawdle.notify_one());
            }
        }
    }

    /// Moves the slot of each channel to another master, with a pause before and after its keys.
    async fn move_slots(&mut self, world: &World, pause: Duration) {
        let set = self.store.cluster();
        set.until_whole().await;
        for channel in &world.channels {
            let (slot, from, masters) = (set.slot(channel), set.owner(channel), set.masters());
            let at = masters.iter().position(|&master| master == from).expect("the owner is a master");
            let to = masters[(at + 1) % masters.len()];
            set.begin_move(slot, from, to);
            sleep(pause).await;
            set.move_keys(slot, from, to);
            sleep(pause).await;
            set.end_move(slot, to);
        }
    }

    /// A new master serves a channel for a moment, and leaves again.
    async fn join_and_leave(&mut self, channel: &str, moment: Duration) {
        let set = self.store.cluster();
        set.until_whole().await;
        let new = set.join().await;
        set.until_whole().await;
        let (slot, home) = (set.slot(channel), set.owner(channel));
        set.move_slot(slot, home, new);
        sleep(moment).await;
        set.move_slot(slot, new, home);
        set.until_whole().await;
        set.leave().await;
    }

    /// The master of a channel is lost until its replica has taken its place, and comes back as a replica.
    async fn lose_master(&mut self, channel: &str, signal: &str, moment: Duration) {
        match &mut self.store {
            Store::Cluster(set) => {
                let (slot, master) = (set.slot(channel), set.owner(channel));
                set.nodes[master].signal(signal);
                set.until_failed_over(master, slot).await;
                sleep(moment).await;
                if set.nodes[master].has_ended() {
                    set.nodes[master].start_again().await;
                }
                set.nodes[master].signal("CONT");
                set.until_replicated().await;
            }
            store => {
                let set = store.sentinels();
                let port = set.master_port().expect("a Sentinel answers");
                set.master().signal(signal);
                set.until_failed_over(port).await;
                sleep(moment).await;
                set.until_it_follows(port).await;
                set.until_whole().await;
            }
        }
    }

    /// No Sentinel answers, while instances look for the master.
    async fn lose_sentinels(&mut self, while_: Duration) {
        let set = self.store.sentinels();
        set.sentinels.iter_mut().for_each(Redis::stop);
        set.master_of_servers().cli(&["CLIENT", "KILL", "TYPE", "pubsub"]);
        sleep(while_).await;
        for sentinel in &mut set.sentinels {
            sentinel.start_again().await;
        }
        set.until_whole().await;
    }

    pub(super) async fn overflow(&mut self, world: &World, random: &mut StdRng) {
        let listened = || async { self.store.nodes()[0].listeners(&world.channels[0]) > 0 };
        until("somebody listens", listened).await;
        self.store.nodes()[0].cli(&["CONFIG", "SET", "client-output-buffer-limit", TINY_BUFFER]);
        let before = self.subscriptions();
        for channel in 0..3 {
            let id = format!("large{channel}-{}", world.began.elapsed().as_micros());
            world.publish(random, channel, &[id], LARGE).await;
        }
        let cut = before.difference(&self.subscriptions()).count();
        self.store.nodes()[0].cli(&["CONFIG", "SET", "client-output-buffer-limit", USUAL_BUFFER]);
        if cut == 0 {
            world.complain("a large message overflowed no subscription: this tests nothing".into());
        }
        self.overflowed += cut;
    }

    /// The connections to Redis that hear messages.
    pub(super) fn subscriptions(&self) -> BTreeSet<String> {
        let list = self.store.nodes()[0].cli(&["CLIENT", "LIST", "TYPE", "pubsub"]);
        list.lines().filter_map(|line| Some(line.split_once(' ')?.0.to_owned())).collect()
    }

    pub(super) async fn kill_instance(&mut self, index: usize, pause: Duration) {
        let instance = self.instances.remove(index);
        self.repaired += instance.metric("livebridge_gaps_repaired_total").await;
        let log = instance.log();
        let lines: Vec<_> = log.lines().collect();
        let tail = lines[lines.len().saturating_sub(40)..].join("\n");
        let _ = writeln!(self.logs_of_the_dead, "--- end of the log of {}, killed\n{tail}", instance.address);
        drop(instance);
        sleep(pause).await;
        self.instances.insert(index, self.options[index].clone().start_unready());
    }

    pub(super) async fn until_whole(&self) {
        for instance in &self.instances {
            instance.until_ready(true).await;
        }
    }
}
