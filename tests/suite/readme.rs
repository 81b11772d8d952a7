//! Runs what the README shows, and compares docs/configuration.md with the program: its tables of
//! settings with `--help`, its rules file with `livebridge check`.

use std::process::{Command, Stdio};

use tokio::io::{AsyncBufReadExt, BufReader};

use crate::support::instance::{BINARY, Options, command};
use crate::support::redis::Redis;
use crate::support::soon;

const README: &str = include_str!("../../README.md");
const CONFIGURATION: &str = include_str!("../../docs/configuration.md");

/// The README's fenced blocks of a language.
pub fn blocks(language: &str) -> Vec<&'static str> {
    blocks_of(README, language)
}

fn blocks_of(page: &'static str, language: &str) -> Vec<&'static str> {
    let fence = format!("```{language}\n");
    page.split(&fence).skip(1).map(|rest| rest.split("```").next().unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_shell_line_of_the_readme_works() {
    let redis = Redis::start().await;
    let instance = Options::redis(&redis).start().await;
    let here = |line: &str| {
        line.replace("127.0.0.1:8000", &instance.address)
            .replace("redis-cli ", &format!("redis-cli -p {} ", redis.port))
            .replace("127.0.0.1:6379", &format!("127.0.0.1:{}", redis.port))
            .replace(" livebridge\n", &format!(" {BINARY} --listen 127.0.0.1:0"))
    };
    let mut listener = None;
    let mut ran = 0;
    for line in blocks("sh").iter().flat_map(|block| block.lines()) {
        let mut shell = tokio::process::Command::new("sh");
        shell
            .args(["-c", &format!("exec {}", here(&format!("{line}\n")).replace("REDIS_URL=", "env REDIS_URL="))])
            .kill_on_drop(true);
        if line.starts_with("curl -N") {
            let mut child = shell.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
            let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
            while !soon("the welcome", lines.next_line()).await.unwrap().unwrap().contains("welcome") {}
            listener = Some((child, lines));
        } else if line.starts_with("REDIS_URL=") {
            let mut child = shell.stdout(Stdio::piped()).spawn().unwrap();
            let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
            assert!(soon("it listens", lines.next_line()).await.unwrap().unwrap().contains("is listening on"));
        } else {
            let output = soon(line, shell.output()).await.unwrap();
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            assert!(output.status.success() && !text.contains("error") && !text.contains("ERR"), "{line}: {text}");
        }
        ran += 1;
    }
    assert!(ran >= 6, "the README has lost its examples: {ran}");
    let (_child, mut lines) = listener.expect("the README shows how to listen");
    for expected in ["hello", "hello from Redis", "with a position"] {
        while !soon(expected, lines.next_line()).await.unwrap().unwrap().contains(expected) {}
    }
}

#[test]
fn the_tables_of_settings_are_those_of_the_program() {
    let folder = tempfile::tempdir().unwrap();
    let output = command(folder.path()).arg("--help").output().unwrap();
    let help = String::from_utf8(output.stdout).unwrap();
    let table: Vec<&str> = CONFIGURATION.lines().filter(|line| line.starts_with("| `--")).collect();
    let flags = help
        .lines()
        .filter_map(|line| line.trim_start().strip_prefix("--"))
        .map(|rest| rest.split_whitespace().next().unwrap());
    let mut count = 0;
    for flag in flags.filter(|flag| !["help", "version"].contains(flag)) {
        let row = table.iter().find(|row| row.starts_with(&format!("| `--{flag}` |")));
        let row = row.unwrap_or_else(|| panic!("--{flag} is not in docs/configuration.md"));
        // A switch has no value, so that its line ends there.
        let at = help.find(&format!("--{flag} ")).or_else(|| help.find(&format!("--{flag}\n"))).unwrap();
        let after = &help[at..];
        // Long descriptions are wrapped.
        let described = after.split("\n      --").next().unwrap().split_whitespace().collect::<Vec<_>>().join(" ");
        let variable = described.split("[env: ").nth(1).unwrap().split(['=', ']']).next().unwrap();
        assert!(row.contains(&format!("`{variable}`")), "{row}: the variable is {variable}");
        if let Some(default) = described.split("[default: ").nth(1).map(|rest| rest.split(']').next().unwrap())
            && !default.contains(' ')
        {
            assert!(row.contains(&format!("`{default}`")), "{row}: the default is {default}");
        }
        count += 1;
    }
    assert_eq!(count, table.len(), "docs/configuration.md has settings that the program does not have");
}

#[test]
fn the_rules_file_of_the_documentation_is_valid() {
    let folder = tempfile::tempdir().unwrap();
    let rules = blocks_of(CONFIGURATION, "toml").concat();
    assert!(rules.contains("[[channel]]"), "docs/configuration.md has lost its rules file");
    std::fs::write(folder.path().join("livebridge.toml"), rules).unwrap();
    let check: &mut Command = &mut command(folder.path());
    assert!(check.arg("check").status().unwrap().success());
}
