//! The process: reads the configuration, then does what the command says.

use std::fmt::Display;
use std::io::{IsTerminal, Write};
use std::process::ExitCode;

use livebridge::client;
use livebridge::config::{self, Command, ServeArgs, Settings};
use livebridge::server::Server;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    let cli = match config::parse() {
        Ok(cli) => cli,
        Err(error) => return fail(format_args!("in .env: {error}")),
    };
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false)
        .with_env_filter(EnvFilter::try_from_env("LIVEBRIDGE_LOG").unwrap_or_else(|_| EnvFilter::new("info")))
        .init();
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return fail(error),
    };
    runtime.block_on(async {
        match cli.command {
            None => serve(cli.serve).await,
            Some(Command::Serve(args)) => serve(*args).await,
            Some(Command::Publish(args)) => done(client::publish(&args).await),
            Some(Command::Tail(args)) => done(client::tail(&args).await),
            Some(Command::Check(args)) => match &args.url {
                Some(url) => done(client::check(url).await),
                None => done(Settings::resolve(args.serve).map(drop)),
            },
        }
    })
}

async fn serve(args: ServeArgs) -> ExitCode {
    let settings = match Settings::resolve(args) {
        Ok(settings) => settings,
        Err(error) => return fail(error),
    };
    let broker = if settings.redis_url.is_some() { "Redis" } else { "the embedded broker" };
    let (mut terminate, mut interrupt) = match (signal(SignalKind::terminate()), signal(SignalKind::interrupt())) {
        (Ok(terminate), Ok(interrupt)) => (terminate, interrupt),
        (Err(error), _) | (_, Err(error)) => return fail(error),
    };
    let server = match Server::start(settings) {
        Ok(server) => server,
        Err(error) => return fail(error),
    };
    let address = server.address;
    // Nobody may be reading: that is no reason not to serve.
    let _ = writeln!(
        std::io::stdout(),
        "livebridge is listening on http://{address} with {broker}\n\n  the demo:  http://{address}/\n  listen:    curl -N 'http://{address}/events?channel=live'\n  publish:   curl -d 'hello' 'http://{address}/publish?channel=live'\n"
    );
    server
        .run_until(async {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            tracing::info!("stopping: clients are told to reconnect elsewhere");
        })
        .await;
    ExitCode::SUCCESS
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
