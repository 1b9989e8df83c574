-- gpuacct's usage records in DuckDB, from the files that an OpenTelemetry Collector has written.
--
--   SET VARIABLE gpuacct_files = 's3://gpu-usage/gpuacct/**/*.json.gz';   -- or a local pattern, or a list
--   .read duckdb.sql
--   FROM gpuacct.bill WHERE hour >= '2026-11-01' AND hour < '2026-12-01';
--
-- The files are OTLP as JSON, a message in each line, as the exporters `file` and `awss3` of the
-- Collector's distribution "contrib" write it (deploy/collector/records.yaml, which compresses them). S3
-- needs DuckDB's extension httpfs and a secret (CREATE SECRET). To keep the records as Parquet, and to read
-- them from there:
--
--   COPY gpuacct.records TO 'records-2026-11.parquet' (FORMAT parquet);
--   CREATE OR REPLACE VIEW gpuacct.records AS SELECT * FROM 'records-*.parquet'
--       QUALIFY row_number() OVER (PARTITION BY hour, id ORDER BY revision DESC) = 1;
--
-- Two of these files may have one record in two revisions, so duplicates are removed there as well.
--
-- A record may be in the files several times, and in several revisions. The greatest revision of each
-- id counts, once. Times are nanoseconds, energy is millijoules, memory over time is byte-seconds: all
-- are integers, and sums of them are exact.

CREATE SCHEMA IF NOT EXISTS gpuacct;

-- Every record as it was received.
CREATE OR REPLACE VIEW gpuacct.received AS
WITH messages AS (
    SELECT unnest(resourceLogs) AS of_resource
    FROM read_json(
        getvariable('gpuacct_files'),
        format = 'newline_delimited',
        maximum_object_size = 67108864,
        columns = {
            resourceLogs: 'STRUCT(
                resource STRUCT(attributes STRUCT("key" VARCHAR, "value" JSON)[]),
                scopeLogs STRUCT(
                    "scope" STRUCT("name" VARCHAR),
                    logRecords STRUCT(
                        timeUnixNano VARCHAR,
                        attributes STRUCT("key" VARCHAR, "value" JSON)[]
                    )[]
                )[]
            )[]'
        }
    )
), scopes AS (
    SELECT of_resource.resource.attributes AS resource, unnest(of_resource.scopeLogs) AS of_scope
    FROM messages
), logs AS (
    SELECT resource, unnest(of_scope.logRecords) AS log
    FROM scopes
    WHERE of_scope."scope"."name" = 'gpuacct'
), texts AS (
    -- A value has one member, which is called after its type. Of an image's tags the first is taken.
    SELECT
        make_timestamp_ns(CAST(log.timeUnixNano AS BIGINT)) AS hour,
        MAP_FROM_ENTRIES(list_transform(resource, lambda pair: (
            pair."key",
            coalesce(pair."value"->>'stringValue', pair."value"->>'intValue')
        ))) AS resource,
        MAP_FROM_ENTRIES(list_transform(log.attributes, lambda pair: (
            pair."key",
            coalesce(
                pair."value"->>'stringValue',
                pair."value"->>'intValue',
                pair."value"->>'$.arrayValue.values[0].stringValue'
            )
        ))) AS attributes
    FROM logs
)
SELECT
    attributes['gpuacct.record.id'] AS id,
    CAST(attributes['gpuacct.record.revision'] AS BIGINT) AS revision,
    attributes['gpuacct.record.kind'] AS kind,
    hour,
    resource,
    attributes
FROM texts
WHERE attributes['gpuacct.record.id'] IS NOT NULL;

-- Each record once, in its last revision.
CREATE OR REPLACE VIEW gpuacct.records AS
SELECT * FROM gpuacct.received
QUALIFY row_number() OVER (PARTITION BY hour, id ORDER BY revision DESC) = 1;

-- What each account used of a GPU in an hour.
CREATE OR REPLACE VIEW gpuacct.used AS
SELECT
    id,
    hour,
    coalesce(resource['k8s.node.name'], resource['host.name']) AS node,
    coalesce(resource['k8s.cluster.name'], '') AS cluster,
    attributes['hw.id'] AS gpu,
    attributes['hw.model'] AS model,
    attributes['gpuacct.mig_profile'] AS mig_profile,
    attributes['gpuacct.owner.kind'] AS owner_kind,
    attributes['gpuacct.attribution'] AS attribution,
    attributes['k8s.namespace.name'] AS namespace,
    attributes['k8s.pod.name'] AS pod,
    attributes['k8s.pod.uid'] AS pod_uid,
    coalesce(attributes['k8s.container.name'], attributes['container.name']) AS container,
    attributes['container.id'] AS container_id,
    attributes['container.image.name'] AS image,
    attributes['container.image.tags'] AS image_tag,
    attributes['gpuacct.unit'] AS unit,
    CAST(attributes['gpuacct.busy_ns'] AS HUGEINT) AS busy_ns,
    CAST(attributes['gpuacct.held_ns'] AS HUGEINT) AS held_ns,
    CAST(attributes['gpuacct.allocated_ns'] AS HUGEINT) AS allocated_ns,
    CAST(attributes['gpuacct.allocated_share_ns'] AS HUGEINT) AS allocated_share_ns,
    CAST(coalesce(attributes['gpuacct.engine.memory_ns'], '0') AS HUGEINT) AS engine_memory_ns,
    CAST(coalesce(attributes['gpuacct.engine.encoder_ns'], '0') AS HUGEINT) AS engine_encoder_ns,
    CAST(coalesce(attributes['gpuacct.engine.decoder_ns'], '0') AS HUGEINT) AS engine_decoder_ns,
    CAST(coalesce(attributes['gpuacct.engine.jpeg_ns'], '0') AS HUGEINT) AS engine_jpeg_ns,
    CAST(coalesce(attributes['gpuacct.engine.ofa_ns'], '0') AS HUGEINT) AS engine_ofa_ns,
    CAST(attributes['gpuacct.memory_byte_seconds'] AS HUGEINT) AS memory_byte_seconds,
    CAST(attributes['gpuacct.energy_mj'] AS HUGEINT) AS energy_mj,
    -- Labels of pods (publish.pod_labels): labels['team'].
    MAP_FROM_ENTRIES(list_transform(
        list_filter(map_entries(attributes), lambda pair: starts_with(pair."key", 'k8s.pod.label.')),
        lambda pair: (substr(pair."key", 15), pair."value")
    )) AS labels
FROM gpuacct.records
WHERE kind = 'account';

-- What became of each GPU's hour. elapsed_ns = busy_ns + idle_ns + unobserved_ns, and busy_ns is that of
-- all accounts of the GPU and unattributed_ns.
CREATE OR REPLACE VIEW gpuacct.gpus AS
SELECT
    id,
    hour,
    coalesce(resource['k8s.node.name'], resource['host.name']) AS node,
    coalesce(resource['k8s.cluster.name'], '') AS cluster,
    attributes['hw.id'] AS gpu,
    attributes['hw.model'] AS model,
    attributes['gpuacct.mig_profile'] AS mig_profile,
    CAST(attributes['gpuacct.elapsed_ns'] AS HUGEINT) AS elapsed_ns,
    CAST(attributes['gpuacct.busy_ns'] AS HUGEINT) AS busy_ns,
    CAST(attributes['gpuacct.idle_ns'] AS HUGEINT) AS idle_ns,
    CAST(attributes['gpuacct.unobserved_ns'] AS HUGEINT) AS unobserved_ns,
    CAST(attributes['gpuacct.unattributed_ns'] AS HUGEINT) AS unattributed_ns,
    CAST(attributes['gpuacct.energy_mj'] AS HUGEINT) AS energy_mj,
    CAST(attributes['gpuacct.energy_idle_mj'] AS HUGEINT) AS energy_idle_mj,
    CAST(attributes['gpuacct.energy_unattributed_mj'] AS HUGEINT) AS energy_unattributed_mj,
    attributes
FROM gpuacct.records
WHERE kind = 'gpu';

-- Time of each GPU's hour that no account used: idle, unobserved by reason, unattributed by reason.
CREATE OR REPLACE VIEW gpuacct.unused AS
SELECT hour, node, cluster, gpu, model, mig_profile, 'idle' AS state, '' AS reason, idle_ns AS time_ns
FROM gpuacct.gpus
WHERE idle_ns > 0
UNION ALL
SELECT
    hour, node, cluster, gpu, model, mig_profile,
    regexp_extract(pair."key", '^gpuacct\.(unobserved|unattributed)\.(.*)_ns$', 1),
    regexp_extract(pair."key", '^gpuacct\.(unobserved|unattributed)\.(.*)_ns$', 2),
    CAST(pair."value" AS HUGEINT)
FROM (
    SELECT hour, node, cluster, gpu, model, mig_profile, unnest(map_entries(attributes)) AS pair
    FROM gpuacct.gpus
)
WHERE regexp_matches(pair."key", '^gpuacct\.(unobserved|unattributed)\.(.*)_ns$');

-- The bill: who used how much of which model in each hour. The host's work and time without an owner
-- have rows of their own, so that busy_ns adds up to that of the GPUs. Sum over the hours that you want.
CREATE OR REPLACE VIEW gpuacct.bill AS
SELECT
    hour,
    cluster,
    model,
    coalesce(mig_profile, '') AS mig_profile,
    CASE owner_kind WHEN 'host' THEN '(host)' ELSE coalesce(namespace, '(none)') END AS namespace,
    sum(busy_ns) AS busy_ns,
    sum(allocated_share_ns) AS allocated_share_ns,
    sum(memory_byte_seconds) AS memory_byte_seconds,
    sum(energy_mj) AS energy_mj
FROM gpuacct.used
GROUP BY ALL
UNION ALL
SELECT
    hour, cluster, model, coalesce(mig_profile, ''), '(unattributed)',
    sum(unattributed_ns), 0, 0, sum(energy_unattributed_mj)
FROM gpuacct.gpus
WHERE unattributed_ns > 0 OR energy_unattributed_mj > 0
GROUP BY ALL;
