# A stock Sidekiq's worker for the receipts: it notes what it was given, in a list of its own.
require "sidekiq"

class SendRideReceipt
  include Sidekiq::Worker

  def perform(args)
    worked = { "jid" => jid, "args" => args }
    Sidekiq.redis { |redis| redis.rpush("worked", Sidekiq.dump_json(worked)) }
  end
end
