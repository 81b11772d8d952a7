//! The process: reads the configuration and runs the command.

use std::fmt::Display;
use std::io::Write;
use std::process::ExitCode;

use livebridge::access::issue;
use livebridge::commands::client;
use livebridge::config::{self, Command, ServeArgs, Settings, TokenArgs};
use livebridge::observability::logging;
use livebridge::server::Server;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

/// mimalloc takes less time than the system's allocator, and returns unused memory to the system:
/// docs/decisions/007-allocator.md.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let cli = match config::parse() {
        Ok(cli) => cli,
        Err(error) => return fail(format_args!("in .env: {error}")),
    };
    logging::init(cli.log_format());
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return fail(error),
    };
    let code = runtime.block_on(async {
        match cli.command {
            None => serve(cli.serve).await,
            Some(Command::Serve(args)) => serve(*args).await,
            Some(Command::Publish(args)) => done(client::publish(&args).await),
            Some(Command::Token(args)) => token(&args),
            Some(Command::Tail(args)) => done(client::tail(&args).await),
            Some(Command::Check(args)) => match &args.url {
                Some(url) => done(client::check(url).await),
                None => check(args.serve).await,
            },
        }
    });
    // Does not wait for tasks that are still running; the drain has its own time limit.
    runtime.shutdown_background();
    code
}

async fn serve(args: ServeArgs) -> ExitCode {
    let settings = match Settings::resolve(args) {
        Ok(settings) => settings,
        Err(error) => return fail(error),
    };
    let broker = if settings.redis.is_some() { "Redis" } else { "the embedded broker" };
    let mut signals = match count_signals() {
        Ok(signals) => signals,
        Err(error) => return fail(error),
    };
    let mut hurry = signals.clone();
    let server = match Server::start(settings) {
        Ok(server) => server,
        Err(error) => return fail(error),
    };
    let address = server.address;
    tracing::info!(instance = server.app.instance, version = env!("CARGO_PKG_VERSION"), %address, broker, "serving");
    // Standard error may be closed. That is no reason to stop serving.
    let _ = writeln!(
        std::io::stdout(),
        "livebridge is listening on http://{address} with {broker}\n\n  the demo:  http://{address}/\n  listen:    curl -N 'http://{address}/events?channel=live'\n  publish:   curl -d 'hello' 'http://{address}/publish?channel=live'\n"
    );
    let stop = async move {
        let _ = signals.wait_for(|&count| count >= 1).await;
        tracing::info!("stopping: closing all clients, which may reconnect; a second signal stops the process at once");
    };
    tokio::select! {
        () = server.run_until(stop) => ExitCode::SUCCESS,
        _ = hurry.wait_for(|&count| count >= 2) => {
            tracing::warn!("stopped at once: some clients got no close");
            ExitCode::FAILURE
        }
    }
}

/// Prints a token.
fn token(args: &TokenArgs) -> ExitCode {
    match issue::issue(&args.spec(), &args.token_secret[0]) {
        Ok(token) => done(writeln!(std::io::stdout(), "{token}")),
        Err(error) => fail(error),
    }
}

/// Checks settings, system and broker, and prints the findings.
async fn check(args: ServeArgs) -> ExitCode {
    let settings = match Settings::resolve(args) {
        Ok(settings) => settings,
        Err(error) => return fail(error),
    };
    match livebridge::commands::check::run(&settings, &mut std::io::stdout()).await {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => fail(error),
    }
}

/// Counts the signals to stop: SIGTERM and Ctrl-C.
fn count_signals() -> std::io::Result<watch::Receiver<u32>> {
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let (count, counted) = watch::channel(0);
    tokio::spawn(async move {
        loop {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            count.send_modify(|count| *count += 1);
        }
    });
    Ok(counted)
}

fn done<E: Display>(result: Result<(), E>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(error),
    }
}

fn fail(error: impl Display) -> ExitCode {
    let _ = writeln!(std::io::stderr(), "livebridge: {error}");
    ExitCode::FAILURE
}
