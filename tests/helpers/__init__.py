"""What several tests use: tiny models, launches, pages, stand-ins for servers and clusters."""
