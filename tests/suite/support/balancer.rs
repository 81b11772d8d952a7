//! A load balancer of the simplest kind: each connection goes to the next instance that takes one.

use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

pub struct Balancer {
    pub address: String,
    accepting: JoinHandle<()>,
}

impl Balancer {
    /// In front of these addresses, which stay the same when an instance is replaced.
    pub async fn start(instances: Vec<String>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let accepting = tokio::spawn(async move {
            let next = AtomicUsize::new(0);
            while let Ok((mut client, _)) = listener.accept().await {
                let first = next.fetch_add(1, Ordering::Relaxed);
                let instances = instances.clone();
                tokio::spawn(async move {
                    for turn in 0..instances.len() {
                        let Ok(mut instance) = TcpStream::connect(&instances[(first + turn) % instances.len()]).await
                        else {
                            continue;
                        };
                        let _ = (client.set_nodelay(true), instance.set_nodelay(true));
                        let _ = copy_bidirectional(&mut client, &mut instance).await;
                        return;
                    }
                });
            }
        });
        Self { address, accepting }
    }
}

impl Drop for Balancer {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}
