-- Fails where a text is not JSON that the table takes. The limit is that of the constraint events_payload.
SELECT 1 / (coalesce(max(octet_length(p::jsonb::text)), 0) <= 1048576)::integer FROM unnest(%s::text[]) p
