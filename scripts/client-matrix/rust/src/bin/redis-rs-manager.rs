//! redis-rs' ConnectionManager: connect, wait for a line, publish, say what came of it.

use redis::aio::ConnectionManager;

fn call(payload: &str, with_id: bool) -> redis::Cmd {
    let mut call = redis::cmd("FCALL");
    call.arg("livebridge_publish").arg(1).arg("live").arg(payload);
    if with_id {
        call.arg("id").arg("order-17");
    }
    call
}

#[tokio::main]
async fn main() -> redis::RedisResult<()> {
    let arguments: Vec<String> = std::env::args().collect();
    let client = redis::Client::open(format!("redis://127.0.0.1:{}", arguments[1]))?;
    let mut connection = ConnectionManager::new(client).await?;
    let _: redis::Value = call("first", false).query_async(&mut connection).await?;
    println!("ready");
    let _ = std::io::stdin().read_line(&mut String::new());
    let answer: redis::RedisResult<redis::Value> =
        call("second", arguments[2] == "id").query_async(&mut connection).await;
    match answer {
        Ok(_) => println!("answered"),
        Err(error) => println!("raised {error}"),
    }
    Ok(())
}
