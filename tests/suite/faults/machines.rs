//! The machines that break: Redis, the instances, and the network between them.

use super::*;

/// What keeps the messages.
pub(super) enum Store {
    One(Box<Redis>),
    /// Three masters without replicas: what is stored survives, so nothing may be lost.
    Cluster(ClusterSet),
}

impl Store {
    fn nodes(&self) -> &[Redis] {
        match self {
            Self::One(redis) => std::slice::from_ref(&**redis),
            Self::Cluster(set) => &set.nodes,
        }
    }

    fn one(&mut self) -> &mut Redis {
        match self {
            Self::One(redis) => redis,
            Self::Cluster(_) => panic!("this fault is for one Redis"),
        }
    }

    fn cluster(&mut self) -> &mut ClusterSet {
        match self {
            Self::Cluster(set) => set,
            Self::One(_) => panic!("this fault is for a Cluster"),
        }
    }
}

/// What runs, and is broken.
pub(super) struct Machines {
    pub(super) store: Store,
    deck: &'static [Fault],
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
            machines.start_instance(index, format!("redis://127.0.0.1:{port}/")).await;
        }
        machines
    }

    /// All instances beside a Cluster.
    pub(super) async fn on_a_cluster() -> Self {
        let set = ClusterSet::start().await;
        let url = set.url();
        let mut machines = Self::with(Store::Cluster(set), &FAULTS_OF_A_CLUSTER);
        for index in 0..INSTANCES {
            machines.start_instance(index, url.clone()).await;
        }
        machines
    }

    fn with(store: Store, deck: &'static [Fault]) -> Self {
        Self {
            store,
            deck,
            proxies: Vec::new(),
            instances: Vec::new(),
            options: Vec::new(),
            logs_of_the_dead: String::new(),
            repaired: 0.0,
            overflowed: 0,
        }
    }

    async fn start_instance(&mut self, index: usize, redis_url: String) {
        let options = Options { redis_url: Some(redis_url), ..Options::default() };
        let options = options.rules(RULES).flag(&format!("--instance-name lb-{index}"));
        let instance = options.clone().start().await;
        self.options.push(options.listen(&instance.address));
        self.instances.push(instance);
    }

    /// Until the time is over, and each fault was there at least once.
    pub(super) async fn break_things(&mut self, world: &World, time: Duration) {
        let mut random = world.random("faults");
        let began = Instant::now();
        while began.elapsed() < time {
            let mut deck = self.deck.to_vec();
            deck.shuffle(&mut random);
            for (dealt, fault) in deck.into_iter().enumerate() {
                let whole_deck_was_dealt = world.faults.lock().unwrap().len() == self.deck.len();
                if (began.elapsed() >= time && whole_deck_was_dealt) || !world.complaints.lock().unwrap().is_empty() {
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
            let (slot, from) = (set.slot(channel), set.owner(channel));
            let to = (from + 1) % 3;
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

    pub(super) async fn overflow(&mut self, world: &World, random: &mut StdRng) {
        let listened = || async { self.store.nodes()[0].listeners(&world.channels[0]) > 0 };
        until("somebody listens", listened).await;
        self.store.nodes()[0].cli(&["CONFIG", "SET", "client-output-buffer-limit", TINY_BUFFER]);
        let before = self.subscriptions();
        for channel in 0..3 {
            let id = format!("large{channel}-{}", world.began.elapsed().as_micros());
            world.publish(random, channel, &id, LARGE).await;
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
