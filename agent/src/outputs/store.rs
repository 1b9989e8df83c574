//! The durable ledger: what the core hands over to be kept, in a SQLite file that outlives the agent.

pub mod schema;
