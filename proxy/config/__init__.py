"""TOML to frozen, validated objects; every problem at once."""
