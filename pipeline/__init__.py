"""The stream: the only place that knows Kafka, Faust, Prometheus, HTTP and the clock."""
