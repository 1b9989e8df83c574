//! What a new configuration changes in a running agent, and what waits for a restart.
//!
//! Only keys that touch neither the books nor what was attached, bound or opened at the start are
//! changed while the agent runs. The others stay as they are, and are named.

use toml::{Table, Value};

use super::sections::Config;

/// Keys that are changed while the agent runs.
const LIVE: [&str; 9] = [
    "cadvisor.duty_cycle",
    "cadvisor.enabled",
    "log.level",
    "publish.grace",
    "publish.keep_for",
    "publish.pod_labels",
    "publish.zero_for",
    "store.max_size",
    "store.retention",
];

/// What a new configuration changes.
#[derive(Clone, Debug, PartialEq)]
pub struct ConfigChange {
    /// The configuration that is in force from now on.
    pub config: Config,
    /// Keys that have changed in it, in alphabetical order.
    pub changed: Vec<String>,
    /// Keys whose new values need a restart of the agent, in alphabetical order.
    pub needs_restart: Vec<String>,
}

impl Config {
    /// This configuration with what `next` changes and what can be changed while the agent runs.
    ///
    /// # Errors
    /// A path in one of the two is not UTF-8, which no file can name.
    pub fn change_to(&self, next: &Self) -> Result<ConfigChange, toml::ser::Error> {
        let (mut before, after) = (Table::try_from(self)?, Table::try_from(next)?);
        let mut keys: Vec<(String, String)> = Vec::new();
        for table in [&before, &after] {
            for (section, content) in table {
                let content = content.as_table().into_iter().flat_map(Table::keys);
                keys.extend(content.map(|key| (section.clone(), key.clone())));
            }
        }
        keys.sort();
        keys.dedup();
        let mut change = ConfigChange {
            config: self.clone(),
            changed: Vec::new(),
            needs_restart: Vec::new(),
        };
        for (section, key) in keys {
            let value_in = |table: &Table| table.get(&section)?.get(&key).cloned();
            let value: Option<Value> = value_in(&after);
            if value_in(&before) == value {
                continue;
            }
            let name = format!("{section}.{key}");
            if !LIVE.contains(&&*name) {
                change.needs_restart.push(name);
                continue;
            }
            change.changed.push(name);
            if let (Some(Value::Table(content)), Some(value)) = (before.get_mut(&section), value) {
                content.insert(key, value);
            }
        }
        // Both were configurations, and a key by itself is as valid in the one as in the other.
        if let Ok(config) = before.try_into() {
            change.config = config;
        }
        Ok(change)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(text: &str) -> Config {
        Config::parse(text, "test").expect("it is valid")
    }

    #[test]
    fn what_can_change_does_and_the_rest_stays_and_is_named() {
        let before = config("[log]\nlevel = \"info\"\n[otlp]\nendpoint = \"http://a:1\"\n");
        let after = config(
            "[log]\nlevel = \"debug\"\n[gpu]\ninterval = \"2s\"\n[publish]\npod_labels = [\"team\"]\n\
             [cadvisor]\nenabled = true\n",
        );
        let change = before.change_to(&after).expect("the paths are text");
        let changed = ["cadvisor.enabled", "log.level", "publish.pod_labels"];
        assert_eq!(change.changed, changed);
        assert_eq!(change.needs_restart, ["gpu.interval", "otlp.endpoint"]);
        let mut expected = before.clone();
        expected.log.level = "debug".to_owned();
        expected.publish.pod_labels = vec!["team".to_owned()];
        expected.cadvisor.enabled = true;
        assert_eq!(change.config, expected);

        let again = change.config.change_to(&after).expect("the paths are text");
        assert_eq!(again.changed, Vec::<String>::new());
        assert_eq!(again.needs_restart, change.needs_restart, "named each time");
        let same = before.change_to(&before).expect("the paths are text");
        assert_eq!((same.changed, same.needs_restart), (vec![], vec![]));
    }

    #[test]
    fn every_key_that_can_change_is_a_key() {
        let table = Table::try_from(Config::default()).expect("the paths are text");
        for key in LIVE {
            let (section, key) = key.split_once('.').expect("a section and a key");
            assert!(table[section].get(key).is_some(), "{section}.{key}");
        }
    }
}
