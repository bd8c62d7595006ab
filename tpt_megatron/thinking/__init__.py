"""From documents to thinking trajectories: prompts, requests, journal, chunks, engines, the job."""
