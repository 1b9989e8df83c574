//! `gpuacct config`: prints the configuration that is in force, or everything that is wrong with it.

use std::process::ExitCode;

use clap::Args;

use super::agent_choice::{AgentChoice, ChosenConfig};
use super::complaint::complain;
use super::output::print;
use crate::config::Config;

/// Check a configuration and print it whole, defaults included
///
/// Secrets are not printed. Exits with 0 if it can be used, with 1 if it cannot be printed, with 2 and
/// everything that is wrong with it if not.
#[derive(Debug, Args)]
pub struct Options {
    /// As a configuration file (toml) or for programs (json)
    #[arg(short, long, value_enum, default_value_t = Output::Toml)]
    output: Output,
    #[command(flatten)]
    agent: AgentChoice,
}

/// How a configuration is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Output {
    /// A configuration file.
    Toml,
    /// One document, with null for keys that have no value.
    Json,
}

/// Checks and prints.
pub async fn run(options: Options) -> ExitCode {
    let chosen = match options.agent.configuration().await {
        Ok(chosen) => chosen,
        Err(error) => return complain(&error, 2),
    };
    match page(chosen, options.output) {
        Ok(text) => print(text.as_bytes(), 0),
        Err(error) => complain(&*error, 2),
    }
}

/// The configuration as it is printed, without its secrets.
fn page(chosen: ChosenConfig, output: Output) -> Result<String, Box<dyn std::error::Error>> {
    Ok(match output {
        Output::Toml => chosen.page()?,
        Output::Json => json(chosen.config)? + "\n",
    })
}

fn json(config: Config) -> serde_json::Result<String> {
    serde_json::to_string_pretty(&config.redacted())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Origins;

    const FILE: &str = "[otlp]\nendpoint = \"http://me:hunter22@collector:4317\"\n\
                        [otlp.headers]\nauthorization = \"Bearer hunter22\"\n";

    fn printed(text: &str, output: Output) -> String {
        let chosen = ChosenConfig {
            config: Config::parse(text, "test").unwrap(),
            origins: Origins::default(),
            unused: vec!["OTEL_EXPORTER_OTLP_TIMEOUT: no number".to_owned()],
            text: None,
            origin: "/etc/gpuacct.toml".to_owned(),
        };
        page(chosen, output).unwrap()
    }

    #[test]
    fn a_password_is_not_printed_in_any_format() {
        for output in [Output::Toml, Output::Json] {
            let page = printed(FILE, output);
            assert!(!page.contains("hunter"), "{page}");
            assert!(page.contains("http://(redacted)@collector:4317"), "{page}");
            assert!(page.contains("authorization"), "{page}");
        }
    }

    #[test]
    fn what_is_printed_as_json_is_the_whole_configuration() {
        let json: serde_json::Value = serde_json::from_str(&printed("", Output::Json)).unwrap();
        assert_eq!(json["gpu"]["library"], serde_json::Value::Null);
        assert_eq!(json["gpu"]["interval"], "1s");
        assert_eq!(json["otlp"]["endpoint"], serde_json::Value::Null);
        assert_eq!(json["store"]["max_size"], 256 << 20);
    }

    #[test]
    fn what_is_printed_says_whose_it_is_and_reads_back() {
        let page = printed("", Output::Toml);
        assert!(
            page.starts_with("# /etc/gpuacct.toml\n# A value is the default unless"),
            "{page}"
        );
        let unused = "\n# not used: OTEL_EXPORTER_OTLP_TIMEOUT: no number\n[kernel]\n";
        assert!(page.contains(unused), "{page}");
        assert_eq!(Config::parse(&page, "page").unwrap(), Config::default());
    }
}
