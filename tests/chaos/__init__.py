"""Workers that join, leave, die and freeze under load, and an independent judge."""
